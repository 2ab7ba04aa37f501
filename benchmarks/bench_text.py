"""A 6-layer BERT, 8 sentences of 512 tokens, 50 steps from the embedding layer: igfast against Captum tuned.

The calls take turns for their times, and each peak is measured in a separate process. Writes results/text.jsonl.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import captum.attr
import torch

import igfast
from benchmarks import cases, harness
from igfast.memory.peak import peak_memory

N_STEPS = 50
PEAK_STEPS = 10  # more steps do not change the peak: igfast has chosen its chunks by then
LABELS = ("igfast", *(f"captum, internal_batch_size={size}" for size in (8, 16)))


def make_cases(n_steps: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Each label as a call."""
    text = cases.bert(batch=8, tokens=512, **cases.SMALL_BERT)

    def case(label: str) -> Callable[[], torch.Tensor]:
        library, _, size = label.partition(", internal_batch_size=")
        call = cases.text_call(*text, {"igfast": igfast, "captum": captum.attr}[library])
        options = {"internal_batch_size": int(size)} if size else {}
        return lambda: call(n_steps=n_steps, **options)

    return {label: case(label) for label in LABELS}


def main() -> None:
    """Measures all cases and writes the records, or one case's peak for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak-of", choices=LABELS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--n-steps", type=int, default=N_STEPS)
    options = parser.parse_args()
    if options.peak_of:
        case = make_cases(options.n_steps)[options.peak_of]
        with peak_memory() as memory:
            case()
        print(json.dumps({"peak_bytes": memory.over_before}))
        return
    steps = ("--n-steps", str(min(options.n_steps, PEAK_STEPS)))
    peaks = {label: harness.in_own_process("benchmarks.bench_text", "--peak-of", label, *steps) for label in LABELS}
    calls = make_cases(options.n_steps)
    own, seconds, ratios = harness.beside(calls.pop("igfast"), calls, options.rounds)
    seconds["igfast"], ratios["igfast"] = own, 1.0
    records = [
        {
            "benchmark": "text",
            "case": f"6-layer BERT, batch 8, 512 tokens, {options.n_steps} steps, float32, embedding layer",
            "provider": label,
            "seconds": harness.percentiles(seconds[label]),
            "time_ratio": ratios[label],
            "rounds": options.rounds,
            **peaks[label],
        }
        for label in LABELS
    ]
    print(harness.write("text", records))
    for record in records:
        print(f"{record['provider']:<32} {record['seconds']['p50']:7.2f} s {record['peak_bytes'] / 2**20:7.0f} MiB")


if __name__ == "__main__":
    main()
