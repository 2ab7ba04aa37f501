"""Many targets in one call against a call for each; many baselines against Captum's GradientShap. Times and memory.

Writes results/many.jsonl.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import captum.attr
import numpy as np
import torch

import igfast
from benchmarks import cases, harness
from igfast.memory.peak import peak_memory

N_STEPS = 50
TARGETS = [3, 4, 5, 6, 7]
NETWORKS = {"ResNet-50, 224x224": cases.resnet50, "ViT-B/16, 224x224": cases.vit}
N_SAMPLES = 200
SIDE = 224
METHODS = ("GradientShap", "LayerGradientShap", "NeuronGradientShap")
LIBRARIES = {"igfast": igfast, "captum": captum.attr}


def many_targets(name: str, rounds: int) -> list[dict[str, Any]]:
    """Times of one call for all targets, and of igfast's calls for each."""
    network, image = NETWORKS[name]()
    explainer = igfast.IntegratedGradients(network)

    def at_once() -> None:
        explainer.attribute_targets(image, TARGETS, n_steps=N_STEPS)

    def one_by_one() -> None:
        for target in TARGETS:
            explainer.attribute(image, target=target, n_steps=N_STEPS)

    own, seconds, ratios = harness.beside(at_once, {"a call for each": one_by_one}, rounds)
    seconds["one call"], ratios["one call"] = own, 1.0
    case = f"{name}, {len(TARGETS)} targets, {N_STEPS} steps, float32"
    return [_record(case, label, seconds[label], ratios[label]) for label in ("one call", "a call for each")]


def gradient_shap(method: str, library: ModuleType) -> Callable[[], object]:
    """A library's attribution from ten baselines to an image: of its output, or at the last block."""
    network, image = cases.efficientnet(SIDE)
    baselines = image * torch.linspace(0, 0.9, 10).view(-1, 1, 1, 1)
    layer = () if method == "GradientShap" else (network[0]._blocks[-1],)
    explainer = getattr(library, method)(network, *layer)
    options = {"neuron_selector": (0, 3, 3)} if method == "NeuronGradientShap" else {"target": 3}

    def call() -> object:
        torch.manual_seed(0)
        np.random.seed(0)
        return explainer.attribute(image, baselines=baselines, n_samples=N_SAMPLES, **options)

    return call


def many_baselines(method: str, rounds: int) -> list[dict[str, Any]]:
    """Times, peaks in processes of their own, and how far both results are apart."""
    calls = {label: gradient_shap(method, library) for label, library in LIBRARIES.items()}
    ours, theirs = (call() for call in calls.values())
    apart = float((ours - theirs).abs().max() / theirs.abs().max())  # type: ignore[operator, attr-defined]
    own, seconds, ratios = harness.beside(calls["igfast"], {"captum": calls["captum"]}, rounds)
    seconds["igfast"], ratios["igfast"] = own, 1.0
    case = f"{method}, EfficientNet-Lite0, {SIDE}x{SIDE}, {N_SAMPLES} samples, float32"
    records = []
    for label in LIBRARIES:
        peak = harness.in_own_process("benchmarks.bench_many", "--peak-of", method, label)
        records.append({**_record(case, label, seconds[label], ratios[label]), **peak, "difference": apart})
    return records


def _record(case: str, provider: str, seconds: list[float], ratio: float) -> dict[str, Any]:
    times = {"seconds": harness.percentiles(seconds), "time_ratio": ratio, "rounds": len(seconds)}
    return {"benchmark": "many", "case": case, "provider": provider, **times}


def main() -> None:
    """Measures all cases and writes the records, or one case's peak for the process that asked."""
    parts: dict[str, Callable[[int], list[dict[str, Any]]]] = {name: partial(many_targets, name) for name in NETWORKS}
    parts |= {method: partial(many_baselines, method) for method in METHODS}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak-of", nargs=2, metavar=("METHOD", "LIBRARY"))
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.peak_of:
        method, label = options.peak_of
        call = gradient_shap(method, LIBRARIES[label])
        with peak_memory() as memory:
            call()
        print(json.dumps({"peak_bytes": memory.over_before}))
        return
    for part in options.parts:
        records = parts[part](options.rounds)
        print(harness.update("many", records), flush=True)
        for record in records:
            print(
                f"{record['case']:<72} {record['provider']:<16} {record['time_ratio']:.2f} {record.get('peak_bytes')}"
            )


if __name__ == "__main__":
    main()
