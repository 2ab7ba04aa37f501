"""On an NVIDIA GPU: operators against a copy on the device, networks against Captum, the largest image that fits.

Writes results/<name of the GPU>.jsonl. Times are of work that was waited for; peaks are what PyTorch's allocator held
at most beyond what it held before the call.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import captum.attr
import torch

import igfast
from benchmarks import cases, harness
from benchmarks.bench_ops import make_copy, make_operators
from igfast.memory import free_memory, is_out_of_memory
from igfast.ops._load import kernels_for

N_STEPS = 50
OPERATOR_MB = 256
CALLS_PER_SAMPLE = 10
CAPTUM_SIZES = (5, 10, 25, 50)
ROUNDS = 5
WARM_UP_CALLS = 3  # libraries choose their kernels, igfast its chunks
SIDE_UNIT = 32
Case = Callable[..., Any]


def on(device: torch.device, *parts: Any) -> list[Any]:
    """A network and its inputs, moved there."""
    return [part.to(device) for part in parts]


NETWORKS: dict[str, Callable[[torch.device], Case]] = {
    "ResNet-50, 224x224": lambda device: partial(cases.image_call, *on(device, *cases.resnet50())),
    "ViT-B/16, 224x224": lambda device: partial(cases.image_call, *on(device, *cases.vit())),
    "BERT-base, 512 tokens": lambda device: partial(cases.text_call, *on(device, *cases.bert(batch=1, tokens=512))),
    "CNN of 5 layers, 32x32": lambda device: partial(cases.image_call, *on(device, *cases.small_cnn())),
    "MLP of 6 layers": lambda device: partial(cases.image_call, *on(device, *cases.small_mlp())),
}


def waiting(device: torch.device, call: Callable[[], object]) -> Callable[[], None]:
    """A call that returns when the device has done its work."""

    def wait() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return wait


def peak_bytes(device: torch.device, call: Callable[[], object]) -> int | None:
    """What a call takes at most beyond what is held before it; None if it does not fit, and on a CPU."""
    if device.type != "cuda":
        return None
    free_memory(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        call()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    return torch.cuda.max_memory_allocated(device) - before


def gate_operators(device: torch.device, dtype: torch.dtype, megabytes: int) -> dict[str, tuple[Case, int]]:
    """Lean ReLU and its gradient on so many bytes, and the bytes that they must move."""
    n_elements = megabytes * 10**6 // dtype.itemsize
    x = torch.randn(n_elements, device=device, dtype=dtype)
    grad, leaf = torch.randn_like(x), torch.randn_like(x).requires_grad_()
    y = torch.ops.igfast.lean_gate(leaf, "relu", 0.0, 0.0, 0.0)
    moved = 2 * x.nbytes + n_elements // 8
    return {
        "gate": (lambda: torch.ops.igfast.lean_gate(x, "relu", 0.0, 0.0, 0.0), moved),
        "gate gradient": (lambda: torch.autograd.grad(y, leaf, grad, retain_graph=True), moved),
    }


def measure_operators(device: torch.device, megabytes: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """A record for each operator; its bandwidth is a share of that of a copy that moves as many bytes."""

    def repeated(call: Callable[[], object]) -> Callable[[], None]:
        return waiting(device, harness.repeated(call, CALLS_PER_SAMPLE))

    records = []
    operators = {**make_operators(megabytes, dtype, device), **gate_operators(device, dtype, megabytes)}
    for name, (operator, n_bytes) in operators.items():
        calls = {"operator": repeated(operator), "copy": repeated(make_copy(n_bytes, device))}
        seconds = harness.alternate(calls, 4 * ROUNDS)
        share = harness.ratio(seconds["copy"], seconds["operator"])
        times = {label: harness.percentiles([s / CALLS_PER_SAMPLE for s in taken]) for label, taken in seconds.items()}
        short = str(dtype).removeprefix("torch.")
        print(f"{name:<14} {megabytes} MB {short:<9} {share:5.2f} of a copy's bandwidth", flush=True)
        record = {"case": f"{name}, {megabytes} MB, {short}", "operator": name, "dtype": short, "bytes_moved": n_bytes}
        records.append(
            {**record, "seconds": times["operator"], "copy_seconds": times["copy"], "bandwidth_share": share}
        )
    return records


def measure_network(device: torch.device, name: str, n_steps: int) -> list[dict[str, Any]]:
    """A record for each provider: peak and seconds."""
    call = NETWORKS[name](device)
    calls = {
        "igfast": partial(call(igfast), n_steps=n_steps),
        **cases.captum_calls(call, n_steps, CAPTUM_SIZES),
    }
    for _ in range(WARM_UP_CALLS):
        calls["igfast"]()
    peaks = {provider: peak_bytes(device, one) for provider, one in calls.items()}
    fitting = {p: waiting(device, one) for p, one in calls.items() if peaks[p] is not None or device.type != "cuda"}
    own, seconds, ratios = harness.beside(fitting.pop("igfast"), fitting, ROUNDS)
    seconds["igfast"], ratios["igfast"] = own, 1.0
    records = []
    for provider, peak in peaks.items():
        record = {"case": f"{name}, {n_steps} steps, float32", "network": name, "provider": provider}
        record |= {"peak_bytes": peak, "seconds": None, "time_ratio": ratios.get(provider)}
        if provider in seconds:
            record |= {"seconds": harness.percentiles(seconds[provider]), "rounds": len(seconds[provider])}
            print(f"{name:<24} {provider:<32} {ratios[provider]:6.2f} x  {peak}", flush=True)
        records.append(record)
    return records


def largest_side(fits: Callable[[int], bool], first: int) -> int:
    """The largest multiple of `SIDE_UNIT` that fits, 0 if none does: by doubling, then by halving what is left."""
    below, above = 0, first // SIDE_UNIT
    while fits(above * SIDE_UNIT):
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        if fits(middle * SIDE_UNIT):
            below = middle
        else:
            above = middle
    return below * SIDE_UNIT


def measure_largest_image(device: torch.device, first: int = 1024) -> list[dict[str, Any]]:
    """The largest square image that a ResNet-50 is attributed on, by Captum one row at a time and by igfast."""
    network = cases.resnet50(SIDE_UNIT)[0].to(device)
    reasons: list[str] = []

    def fits(library: Any, options: dict[str, int], side: int) -> bool:
        free_memory(device)
        try:
            image = torch.randn(1, 3, side, side, device=device)
            library.IntegratedGradients(network).attribute(image, target=3, n_steps=2, **options)
        except Exception as error:  # beyond 2^31 elements of a tensor, libraries refuse in ways of their own
            if side <= first and not is_out_of_memory(error):
                raise
            reasons.append(f"{side}: {type(error).__name__}: {error}".splitlines()[0])
            return False
        return True

    records = []
    for provider, library, options in (
        ("captum, internal_batch_size=1", captum.attr, {"internal_batch_size": 1}),
        ("igfast", igfast, {}),
    ):
        reasons.clear()
        side = largest_side(partial(fits, library, options), first)
        print(f"largest image on ResNet-50: {provider:<32} {side} x {side} ({reasons[-1]})", flush=True)
        record = {"case": "largest image on ResNet-50, float32", "provider": provider, "side": side}
        records.append({**record, "larger_ones": list(reasons)})
    return records


def gpu_origin(device: torch.device) -> dict[str, Any]:
    """The GPU, its driver and CUDA."""
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index or 0}")
    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.strip(),
        "cuda": torch.version.cuda,
    }


def main() -> None:
    """Measures all parts, or some, and writes the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=("operators", "networks", "image"))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="the folder of the records")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not torch.cuda.is_available():
        parser.error("needs an NVIDIA GPU and a CUDA build of torch")
    device = torch.device("cuda", torch.cuda.current_device())
    if not kernels_for(device):
        parser.error("needs igfast's CUDA kernels (IGFAST_CUDA=1)")
    parts: dict[str, list[Callable[[], list[dict[str, Any]]]]] = {
        "operators": [partial(measure_operators, device, OPERATOR_MB, t) for t in (torch.float32, torch.float16)],
        "networks": [partial(measure_network, device, name, N_STEPS) for name in options.networks],
        "image": [partial(measure_largest_image, device)],
    }
    where = gpu_origin(device)
    name = where["gpu"].replace(" ", "-").replace("/", "-")
    for measure in (measure for part in options.parts or parts for measure in parts[part]):
        records = [{"benchmark": "gpu", **record, **where} for record in measure()]
        print(harness.update(name, records, options.out), flush=True)


if __name__ == "__main__":
    main()
