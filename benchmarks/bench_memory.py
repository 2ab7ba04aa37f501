"""One large image: peak memory of an attribution against Captum's least and against inference, a process for each.

Writes results/memory.jsonl. Peaks are resident memory over that of the loaded network and image; `--side` and
`--networks` choose others.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import captum.attr
import torch

import igfast
from benchmarks import cases, harness
from igfast.memory import peak_memory

N_STEPS = 4  # the peak does not depend on it
TARGET = 3
NETWORKS = {"ResNet-50": cases.resnet50, "EfficientNet-Lite0": cases.efficientnet, "VGG-16": cases.vgg16}
PROVIDERS = ("igfast", "captum, internal_batch_size=1", "inference")


def measure(network_name: str, provider: str, side: int) -> dict[str, Any]:
    """Peak bytes and seconds of one call."""
    network, image = NETWORKS[network_name](side)
    with torch.inference_mode():  # libraries set themselves up; a small image keeps the large one's memory out of it
        network(image[:, :, :64, :64])
    with peak_memory() as memory:
        began = time.perf_counter()
        if provider == "inference":
            with torch.inference_mode():
                network(image)
        elif provider == "igfast":
            igfast.IntegratedGradients(network).attribute(image, target=TARGET, n_steps=N_STEPS)
        else:
            explainer = captum.attr.IntegratedGradients(network)
            explainer.attribute(image, target=TARGET, n_steps=N_STEPS, internal_batch_size=1)
        seconds = time.perf_counter() - began
    return {"peak_bytes": memory.over_before, "seconds": seconds}


def main() -> None:
    """Measures all, each in its own process, and writes the records; or one, for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "PROVIDER"))
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.side)))
        return
    records = []
    for network in options.networks:
        for provider in PROVIDERS:
            arguments = ("--one", network, provider, "--side", str(options.side))
            result = harness.in_own_process("benchmarks.bench_memory", *arguments)
            print(f"{network:<20} {provider:<30} {result['peak_bytes'] / 2**20:7.0f} MiB {result['seconds']:7.1f} s")
            case = f"{network}, {options.side}x{options.side}, {N_STEPS} steps, float32"
            records.append({"benchmark": "memory", "case": case, "network": network, "provider": provider, **result})
    print(harness.write("memory", records))


if __name__ == "__main__":
    main()
