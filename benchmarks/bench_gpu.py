"""Measures on an NVIDIA GPU: operators against a device copy, networks against Captum, the largest image that fits.

Writes results/<name of the GPU>.jsonl. A time ends when the GPU has finished its work. A peak is the most that
PyTorch's allocator held during the call, beyond what the allocator held before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import captum.attr
import torch
import torch.nn.functional as F

import igfast
from benchmarks import cases, harness
from benchmarks.bench_ops import make_copy, make_operators
from benchmarks.gpu_cases import (
    N_STEPS,
    NETWORKS,
    Workload,
    call_of,
    compiled_call,
    layout_kept,
    reference,
    relative_error,
    rivals,
)
from igfast.memory.recovery import free_memory, is_out_of_memory
from igfast.ops._load import kernels_for

OPERATOR_MB = 256
CALLS_PER_SAMPLE = 10
ROUNDS = 3
SAMPLE_SECONDS = 0.02  # about, of calls that are timed together
SEVERAL_INPUTS = ("ResNet-50, 224x224", "CNN of 5 layers, 32x32", "MLP of 6 layers")
Records = list[dict[str, Any]]


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
        call()
        return None
    free_memory(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        call()
        torch.cuda.synchronize(device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    return torch.cuda.max_memory_allocated(device) - before


def lean_operators(device: torch.device, dtype: torch.dtype, megabytes: int) -> dict[str, tuple[Any, int]]:
    """Lean ReLU, max pool and batch norm and their gradients on so many bytes, and the bytes that they must move."""
    side = int((megabytes * 10**6 / dtype.itemsize / 64) ** 0.5) // 2 * 2
    x = torch.randn(1, 64, side, side, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    constants = [torch.rand(64, device=device, dtype=dtype) + 0.5 for _ in range(4)]
    forward: dict[str, tuple[Callable[[Any], Any], int, int]] = {  # bytes moved by the forward and the backward pass
        "gate": (lambda t: torch.ops.igfast.lean_gate(t, "relu", 0.0, 0.0, 0.0), *[2 * x.nbytes + x.numel() // 8] * 2),
        "max pool": (
            lambda t: torch.ops.igfast.lean_max_pool(t, [3, 3], [2, 2], [1, 1], [1, 1], False),
            *[x.nbytes + x.nbytes // 4 + x.numel() // 4] * 2,
        ),
        "batch norm": (lambda t: torch.ops.igfast.lean_batch_norm(t, *constants, 1e-5), *[2 * x.nbytes] * 2),
    }
    found = {}
    for name, (operator, n_bytes, n_grad_bytes) in forward.items():
        leaf = x.clone().requires_grad_()
        y = operator(leaf)
        grad = torch.randn_like(y)
        found[name] = (partial(operator, x), n_bytes)
        found[f"{name} gradient"] = (partial(torch.autograd.grad, y, leaf, grad, retain_graph=True), n_grad_bytes)
    found["PyTorch's batch norm"] = (partial(F.batch_norm, x, *constants[:2]), 2 * x.nbytes)
    return found


def measure_operators(device: torch.device, megabytes: int, dtype: torch.dtype) -> Records:
    """A record for each operator; its bandwidth is a share of that of a copy that moves as many bytes."""

    def repeated(call: Callable[[], object]) -> Callable[[], None]:
        return waiting(device, harness.repeated(call, CALLS_PER_SAMPLE))

    records = []
    operators = {**make_operators(megabytes, dtype, device), **lean_operators(device, dtype, megabytes)}
    for name, (operator, n_bytes) in operators.items():
        calls = {"operator": repeated(operator), "copy": repeated(make_copy(n_bytes, device))}
        seconds = harness.alternate(calls, 4 * ROUNDS)
        share = harness.ratio(seconds["copy"], seconds["operator"])
        times = {label: harness.percentiles([s / CALLS_PER_SAMPLE for s in taken]) for label, taken in seconds.items()}
        short = str(dtype).removeprefix("torch.")
        print(f"{name:<22} {megabytes} MB {short:<9} {share:5.2f} of a copy's bandwidth", flush=True)
        record = {"case": f"{name}, {megabytes} MB, {short}", "operator": name, "dtype": short, "bytes_moved": n_bytes}
        records.append(
            {**record, "seconds": times["operator"], "copy_seconds": times["copy"], "bandwidth_share": share}
        )
    return records


def busy_seconds(device: torch.device, call: Callable[[], object]) -> float | None:
    """How long the device computes during a call, waiting left out; None on a CPU."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        waiting(device, call)()
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6


def compared(
    device: torch.device, calls: dict[str, Callable[[], Any]], first: str, rounds: int = ROUNDS
) -> dict[str, dict[str, Any]]:
    """Peak, seconds, and the ratio of its time to that of the `first`, of each call that fits."""
    peaks = {name: peak_bytes(device, call) for name, call in calls.items()}
    fitting = {name: call for name, call in calls.items() if peaks[name] is not None or device.type != "cuda"}
    began = time.perf_counter()
    waiting(device, fitting[first])()
    n_calls = max(1, round(SAMPLE_SECONDS / (time.perf_counter() - began)))
    samples = {name: waiting(device, harness.repeated(call, n_calls)) for name, call in fitting.items()}
    seconds = harness.alternate(samples, rounds)
    found: dict[str, dict[str, Any]] = {}
    for name in calls:
        found[name] = {"peak_bytes": peaks[name], "seconds": None, "time_ratio": None}
        if name in seconds:
            times = harness.percentiles([s / n_calls for s in seconds[name]])
            found[name] |= {"seconds": times, "time_ratio": harness.ratio(seconds[name], seconds[first])}
    return found


def shown(workload: Workload, provider: str, figures: dict[str, Any]) -> dict[str, Any]:
    """A record, printed."""
    peak, seconds = figures["peak_bytes"], figures["seconds"]
    memory = "does not fit" if seconds is None else f"{(peak or 0) / 2**20:9.1f} MiB"
    duration = "" if seconds is None else f"{1e3 * seconds['p50']:10.2f} ms {figures['time_ratio']:6.2f} x"
    others = "  ".join(f"{name} {figures[name]:.3g}" for name in ("error", "busy_seconds") if figures.get(name))
    print(f"{workload!s:<58} {provider:<44} {duration} {memory}  {others}", flush=True)
    short = str(workload.dtype).removeprefix("torch.")
    what = {"case": str(workload), "network": workload.network, "n_inputs": workload.n_inputs, "dtype": short}
    return {**what, "provider": provider, **figures}


def measure_network(device: torch.device, workload: Workload, compiled_steps: tuple[int, ...] = ()) -> Records:
    """A record for each provider: peak, seconds, and, of one input, the error against float64."""
    call = call_of(workload, *workload.on(device))
    ours = {"igfast": call(igfast), "igfast, lean=False": call(igfast, lean=False)}
    calls: dict[str, Callable[[], Any]] = {name: partial(explain, n_steps=N_STEPS) for name, explain in ours.items()}
    calls |= rivals(workload, call)
    for steps in compiled_steps:
        calls[f"captum, compiled, {steps} steps at a time"] = compiled_call(workload, device, steps)
    figures = compared(device, calls, "igfast")
    if workload.n_inputs == 1 and "1024" not in workload.network:  # a large image in float64 takes minutes
        wanted = reference(workload, device)
        for provider in ("igfast", "captum"):
            if figures[provider]["seconds"] is not None:
                figures[provider]["error"] = relative_error(calls[provider](), wanted)
    for provider in (*ours, "captum"):
        if figures[provider]["seconds"] is not None:
            figures[provider]["busy_seconds"] = busy_seconds(device, calls[provider])
    return [shown(workload, provider, figures[provider]) for provider in calls]


def measure_choices(device: torch.device, workload: Workload) -> Records:
    """What igfast chooses by itself, chosen by hand: lean execution, layout, steps of a chunk."""
    is_large = "1024" in workload.network
    steps = (1, 2) if is_large else (5, 10, 25, 50) if workload.n_inputs == 1 else (3, 6)
    network, inputs = workload.on(device)
    layouts = {"": inputs}
    if inputs[0].dim() == 4:
        layouts[", channels-last"] = [inputs[0].contiguous(memory_format=torch.channels_last)]
    calls: dict[str, Callable[[], Any]] = {}
    for n_steps in steps:
        options = {"n_steps": N_STEPS, "internal_batch_size": n_steps * workload.n_inputs}
        for lean in (True, False):
            for layout, laid_out in layouts.items():
                name = f"igfast, {n_steps} steps at a time, lean={lean}{layout}"
                calls[name] = partial(call_of(workload, network, laid_out)(igfast, lean=lean), **options)
    with layout_kept():
        figures = compared(device, calls, next(iter(calls)), rounds=2)
    records = [shown(workload, provider, figures[provider]) for provider in calls]
    return [{**record, "case": f"{record['case']}, choices", "choice": True} for record in records]


def largest_side(fits: Callable[[int], bool], first: int, unit: int) -> int:
    """The largest multiple of `unit` that fits, 0 if none does: by doubling, then by halving what is left."""
    below, above = 0, first // unit
    while fits(above * unit):
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        if fits(middle * unit):
            below = middle
        else:
            above = middle
    return below * unit


LARGEST: dict[str, tuple[Any, dict[str, int]]] = {
    "captum, internal_batch_size=1": (captum.attr, {"internal_batch_size": 1}),
    "igfast": (igfast, {}),
}


def measure_largest_image(device: torch.device, provider: str, first: int = 4480, unit: int = 1120) -> Records:
    """The largest square image that a ResNet-50 is attributed on, in steps of `unit`."""
    library, options = LARGEST[provider]
    network = cases.resnet50(unit)[0].to(device)
    reasons: list[str] = []

    def fits(side: int) -> bool:
        free_memory(device)
        began = time.perf_counter()
        try:
            image = torch.randn(1, 3, side, side, device=device)
            library.IntegratedGradients(network).attribute(image, target=3, n_steps=2, **options)
        except Exception as error:  # for tensors beyond 2^31 elements, libraries raise errors of their own
            if side <= first and not is_out_of_memory(error):
                raise
            reasons.append(f"{side}: {type(error).__name__}: {error}".splitlines()[0])
            fitted = False
        else:
            fitted = True
        print(f"{provider}: {side} x {side} {fitted}, {time.perf_counter() - began:.1f} s", flush=True)
        return fitted

    side = largest_side(fits, first, unit)
    print(f"largest image on ResNet-50: {provider:<32} {side} x {side} ({reasons[-1]})", flush=True)
    record = {"case": "largest image on ResNet-50, float32", "provider": provider, "side": side, "unit": unit}
    return [{**record, "larger_ones": list(reasons)}]


def workloads(names: list[str], inputs: list[int], dtypes: list[str]) -> Iterator[Workload]:
    """Network by network, so that each is made once; of those that fill a GPU by themselves one input is enough."""
    for name in names:
        for n_inputs in inputs:
            if n_inputs == 1 or name in SEVERAL_INPUTS:
                yield from (Workload(name, n_inputs, getattr(torch, dtype)) for dtype in dtypes)


def gpu_origin(device: torch.device) -> dict[str, Any]:
    """The GPU, its driver and CUDA."""
    if device.type != "cuda":
        return {"gpu": "none"}
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index or 0}")
    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.strip(),
        "cuda": torch.version.cuda,
    }


def device_of(parser: argparse.ArgumentParser, on_cpu: bool) -> torch.device:
    """Where to measure."""
    if on_cpu and kernels_for(torch.device("cpu")):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        parser.error("needs an NVIDIA GPU and a CUDA build of torch")
    device = torch.device("cuda", torch.cuda.current_device())
    if not kernels_for(device):
        parser.error("needs igfast's CUDA kernels (IGFAST_CUDA=1)")
    return device


def measurements(options: argparse.Namespace, device: torch.device) -> Iterator[Callable[[], Records]]:
    """What was asked for, in order."""
    compiled_steps = tuple(options.compiled_steps)
    for part in options.parts:
        if part == "operators":
            yield from (
                partial(measure_operators, device, options.megabytes, t) for t in (torch.float32, torch.float16)
            )
        elif part == "image":
            yield from (partial(measure_largest_image, device, provider) for provider in options.largest)
        else:
            for workload in workloads(options.networks, options.inputs, options.dtypes):
                compiled = compiled_steps if workload.network in options.compiled and workload.n_inputs == 1 else ()
                if part == "choices":
                    yield partial(measure_choices, device, workload)
                else:
                    yield partial(measure_network, device, workload, compiled)


def main() -> None:
    """Measures all parts, or some, and writes the records of each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("operators", "networks", "choices", "image")
    parser.add_argument("--parts", nargs="+", choices=parts, default=["operators", "networks", "image"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--inputs", nargs="+", type=int, default=[1, 16], help="examples of a call")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--largest", nargs="+", choices=LARGEST, default=list(LARGEST), help="of the part image")
    parser.add_argument("--compiled", nargs="*", choices=NETWORKS, default=[], help="to be compiled for Captum, too")
    parser.add_argument("--compiled-steps", nargs="+", type=int, default=[50])
    parser.add_argument("--megabytes", type=int, default=OPERATOR_MB, help="of an operator's largest tensor")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="the folder of the records")
    parser.add_argument("--cpu", action="store_true", help="to try it out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = device_of(parser, options.cpu)
    where = gpu_origin(device)
    name = where["gpu"].replace(" ", "-").replace("/", "-")
    failures = 0
    for measure in measurements(options, device):
        try:
            records = measure()
        except Exception:  # the others are to be measured all the same
            traceback.print_exc()
            failures += 1
            continue
        harness.update(name, [{"benchmark": "gpu", **record, **where} for record in records], options.out)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
