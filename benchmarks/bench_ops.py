"""Measures the operators against a torch copy of the same bytes (reads plus writes), at 2 MB and 200 MB of rows.

Writes results/ops.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import harness
from igfast import ops
from igfast.memory.scope import memory_scope

N_ROWS = 8
SIZES_MB = (2, 200)
CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def make_copy(n_bytes: int, device: torch.device = CPU) -> Callable[[], object]:
    """A copy that reads half of `n_bytes` and writes as many."""
    source = torch.ones(n_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def make_operators(
    megabytes: int, dtype: torch.dtype, device: torch.device = CPU
) -> dict[str, tuple[Callable[[], object], int]]:
    """Each operator on (8, 3, side, side) rows of `megabytes`, and the bytes that it must move."""
    side = int((megabytes * 10**6 / dtype.itemsize / N_ROWS / 3) ** 0.5) // 16 * 16
    shape = (3, side, side)
    x, baseline = (torch.randn(1, *shape, device=device).to(dtype) for _ in range(2))
    rows = torch.randn(N_ROWS, *shape, device=device).to(dtype)
    acc = torch.zeros(1, *shape, dtype=ops.accumulator_dtype(dtype), device=device)
    acc_rows = torch.zeros(N_ROWS, *shape, dtype=acc.dtype, device=device)
    example = torch.zeros(N_ROWS, dtype=torch.int64, device=device)
    values = torch.linspace(0.05, 0.9, N_ROWS, dtype=torch.float64, device=device)
    finite = torch.ones(N_ROWS, dtype=torch.uint8, device=device)
    return {
        "interpolate": (
            lambda: ops.interpolate(x, baseline, example, values),
            x.nbytes + baseline.nbytes + rows.nbytes,
        ),
        "accumulate_": (
            lambda: ops.accumulate_(acc, rows, example, values, finite),
            rows.nbytes + 2 * acc.nbytes,
        ),
        "scale_": (
            lambda: ops.scale_(acc_rows, rows, baseline),
            rows.nbytes + baseline.nbytes + 2 * acc_rows.nbytes,
        ),
    }


def measure(megabytes: int, dtype: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    """One record for each operator, its copy timed in turns with it."""
    records = []
    for name, (operator, n_bytes) in make_operators(megabytes, dtype).items():
        with memory_scope(CPU, None):  # as in a call, where the memory of one chunk's points serves the next
            seconds = harness.alternate({"operator": operator, "copy": make_copy(n_bytes)}, rounds)
        times = {label: harness.percentiles(taken) for label, taken in seconds.items()}
        records.append(
            {
                "benchmark": "ops",
                "operator": name,
                "megabytes": megabytes,
                "dtype": str(dtype).removeprefix("torch."),
                "bytes_moved": n_bytes,
                "seconds": times["operator"],
                "copy_seconds": times["copy"],
                "ratio": times["operator"]["p50"] / times["copy"]["p50"],
            }
        )
    return records


def main() -> None:
    """Measures all operators and writes the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    records = [record for mb in SIZES_MB for dtype in DTYPES for record in measure(mb, dtype, rounds)]
    print(harness.write("ops", records))
    for r in records:
        print(f"{r['operator']:<12} {r['megabytes']:>4} MB {r['dtype']:<9} {r['ratio']:5.2f} x copy")


if __name__ == "__main__":
    main()
