"""Measures peak memory on large images: igfast against Captum's least and against inference, in a process for each.

Writes results/memory.jsonl. A peak is resident memory beyond that of the loaded network and image. A call on a small
image comes first, in which libraries load their code. Three networks run at 1024x1024, and ResNet-50 at 4096x4096
within a budget. Captum runs on a quarter of that image. Last comes what a process holds after 20 and 300 calls.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any
from unittest.mock import patch

import captum.attr
import torch
from torch import nn

import igfast
from benchmarks import cases, harness
from igfast.memory.machine import resident_bytes
from igfast.memory.peak import peak_memory

TARGET = 3
NETWORKS = {"ResNet-50": cases.resnet50, "EfficientNet-Lite0": cases.efficientnet, "VGG-16": cases.vgg16}
BUDGET = "6GiB"
WITHIN_BUDGET = f'igfast, memory_budget="{BUDGET}"'
CAPTUM = "captum, internal_batch_size=1"
MMAP = "inference, mmap threshold 128 KiB"  # glibc's heap otherwise keeps free blocks, up to as much again
PROVIDERS = ("igfast", CAPTUM, "inference", MMAP)
MANY_CALLS = (20, 300)
CASES = [  # network, provider, side, steps; the peak does not depend on the steps
    *((network, provider, 1024, 4) for network in NETWORKS for provider in PROVIDERS),
    ("ResNet-50", WITHIN_BUDGET, 4096, 2),
    ("ResNet-50", CAPTUM, 2048, 1),
]


def measure(network_name: str, provider: str, side: int, n_steps: int) -> dict[str, Any]:
    """Peak bytes and seconds of one call."""
    network, image = NETWORKS[network_name](side)
    call(network, image[:, :, :64, :64], provider, n_steps)
    with peak_memory() as memory:
        began = time.perf_counter()
        call(network, image, provider, n_steps)
        seconds = time.perf_counter() - began
    return {"peak_bytes": memory.over_before, "seconds": seconds}


def call(network: nn.Module, image: torch.Tensor, provider: str, n_steps: int) -> None:
    """One call of a provider."""
    if provider in ("inference", MMAP):
        with torch.inference_mode():
            network(image)
    elif provider == CAPTUM:
        explainer = captum.attr.IntegratedGradients(network)
        explainer.attribute(image, target=TARGET, n_steps=n_steps, internal_batch_size=1)
    else:
        budget = BUDGET if provider == WITHIN_BUDGET else None
        explainer = igfast.IntegratedGradients(network, memory_budget=budget)
        explainer.attribute(image, target=TARGET, n_steps=n_steps)


def measure_many_calls() -> dict[str, Any]:
    """Resident bytes of this process after some calls."""
    network, image = NETWORKS["ResNet-50"](96)
    held = {}
    for n_calls in range(1, MANY_CALLS[-1] + 1):
        call(network, image, "igfast", 8)
        if n_calls in MANY_CALLS:
            held[f"resident_after_{n_calls}"] = resident_bytes()
    return held


def main() -> None:
    """Measures all, each in its own process, and writes the records; or one, for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, metavar="CASE", help="the number of one case; -1 for many calls")
    number = parser.parse_args().one
    if number is not None:
        print(json.dumps(measure_many_calls() if number < 0 else measure(*CASES[number])))
        return
    records: list[dict[str, Any]] = []
    for number, (network, provider, side, n_steps) in enumerate(CASES):
        with patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": str(2**17)} if provider == MMAP else {}):
            result = harness.in_own_process("benchmarks.bench_memory", "--one", str(number))
        case = f"{network}, {side}x{side}, {n_steps} steps, float32"
        print(
            f"{case:<50} {provider:<30} {result['peak_bytes'] / 2**20:7.0f} MiB {result['seconds']:7.1f} s", flush=True
        )
        records.append({"case": case, "network": network, "side": side, "provider": provider, **result})
    result = harness.in_own_process("benchmarks.bench_memory", "--one", "-1")
    print(result)
    records.append({"case": "ResNet-50, 96x96, 8 steps, 300 calls", "provider": "igfast", "side": 96, **result})
    print(harness.write("memory", [{"benchmark": "memory", **record} for record in records]))


if __name__ == "__main__":
    main()
