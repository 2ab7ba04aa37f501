"""ResNet-50 at 224x224, 50 steps: igfast without options against Captum without options, and against Captum tuned.

Calls take turns in one process; each peak is of a separate process. Writes results/integrated_gradients.jsonl.
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
TARGET = 3
LABELS = ("igfast", "captum", *(f"captum, internal_batch_size={size}" for size in (1, 2, 5, 10, 25)))


def make_cases() -> dict[str, Callable[[], torch.Tensor]]:
    """Each label as a call."""
    network, image = cases.resnet50()

    def case(label: str) -> Callable[[], torch.Tensor]:
        library, _, size = label.partition(", internal_batch_size=")
        explainer = {"igfast": igfast, "captum": captum.attr}[library].IntegratedGradients(network)
        options = {"internal_batch_size": int(size)} if size else {}
        return lambda: explainer.attribute(image, target=TARGET, n_steps=N_STEPS, **options)

    return {label: case(label) for label in LABELS}


def measure_peak(label: str) -> dict[str, int]:
    """Peak resident bytes of one call over the loaded network."""
    case = make_cases()[label]
    with peak_memory() as measured:
        case()
    return {"peak_bytes": measured.over_before}


def main() -> None:
    """Measures all cases and writes the records, or one case's peak for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak-of", choices=LABELS)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.peak_of:
        print(json.dumps(measure_peak(options.peak_of)))
        return
    peaks = {
        label: harness.in_own_process("benchmarks.bench_integrated_gradients", "--peak-of", label) for label in LABELS
    }
    seconds = harness.alternate(make_cases(), options.rounds)
    records = [
        {
            "benchmark": "integrated_gradients",
            "case": f"ResNet-50, 224x224, {N_STEPS} steps, float32",
            "provider": label,
            "seconds": harness.percentiles(seconds[label]),
            "rounds": options.rounds,
            **peaks[label],
        }
        for label in LABELS
    ]
    print(harness.write("integrated_gradients", records))
    for record in records:
        print(f"{record['provider']:<32} {record['seconds']['p50']:7.2f} s {record['peak_bytes'] / 2**20:7.0f} MiB")


if __name__ == "__main__":
    main()
