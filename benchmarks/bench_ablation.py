"""Measures what each CPU mechanism gains: whole calls without the mechanism, beside calls with everything.

Five networks, 20 steps. Patches of igfast in this process take out one mechanism at a time. An environment variable
chooses the instruction set, in separate processes. A mechanism that gains less than 3 % on every network is to be
removed. Writes results/ablation.jsonl. Cases "removed since" are of mechanisms that went for that reason.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import igfast
from benchmarks import bench_networks, harness

N_STEPS, ROUNDS = 20, 7
ISA_ROUNDS, ISA_CALLS = 3, 3


class PlainConvolution(torch.autograd.Function):
    """A convolution that keeps what lean execution keeps, with PyTorch's gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:  # noqa: A002
        """PyTorch's convolution."""
        ctx.weight, ctx.options = weight, options
        ctx.sizes, ctx.strides, ctx.like = input.shape, input.stride(), input.new_empty(0)
        return torch.convolution(input, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradient of the input alone."""
        placeholder = ctx.like.new_empty_strided(ctx.sizes, ctx.strides)
        of_input = torch.ops.aten.convolution_backward(
            grads[0], placeholder, ctx.weight, None, *ctx.options, [True, False, False]
        )[0]
        return (of_input, *[None] * (2 + len(ctx.options)))


class PlainLinear(torch.autograd.Function):
    """A linear map with one matrix product as its gradient, whatever rows of it are zero."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """PyTorch's linear map."""
        ctx.weight = weight
        return torch.nn.functional.linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradient of the input alone."""
        return grads[0] @ ctx.weight, None, None


@contextmanager
def without_convolution_gradient(applies: Callable[..., bool], hits: list[str]) -> Iterator[None]:
    """PyTorch's gradient for the convolutions that a function picks by weight and stride."""
    from igfast.lean import convolution as family

    lean = family.lean_convolution

    def convolution(input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, *options: Any) -> Any:  # noqa: A002
        if not applies(weight, tuple(stride)):
            return lean(input, weight, bias, stride, *options)
        hits.append("convolution")
        return PlainConvolution.apply(input, weight, bias, list(stride), *map(_as_list, options))

    with patch.object(family, "lean_convolution", convolution):
        yield


def _as_list(option: Any) -> Any:
    return list(option) if isinstance(option, (tuple, list)) else option


def is_winograd(weight: Tensor, stride: tuple[int, ...]) -> bool:
    """Whether a convolution has its gradient by Winograd's algorithm."""
    return tuple(weight.shape[2:]) == (3, 3) and stride == (1, 1) and min(weight.shape[:2]) >= 64


@contextmanager
def without_pool(hits: list[str]) -> Iterator[None]:
    """PyTorch's own CPU allocator."""
    from igfast.memory import scope

    hits.append("pool")
    with patch.dict(scope._SCOPES, {"cpu": scope._unlimited_scope}):
        yield


@contextmanager
def without_channels_last(hits: list[str]) -> Iterator[None]:
    """Path points in the caller's layout."""
    from igfast.run import integration

    def never(x: Tensor) -> bool:
        hits.extend(["image"] * (x.dim() in (4, 5)))
        return False

    with patch.object(integration, "may_be_channels_last", never):
        yield


@contextmanager
def without_zero_rows(hits: list[str]) -> Iterator[None]:
    """Gradients of linear maps with all their rows, zero or not."""
    from igfast.lean import linear as family

    def linear(*arguments: Any) -> Any:
        hits.append("linear")
        return PlainLinear.apply(*arguments)

    with patch.object(family, "lean_linear", linear):
        yield


MECHANISMS: dict[str, Callable[[list[str]], Any]] = {
    "host pool": without_pool,
    "channels-last": without_channels_last,
    "zero rows skipped": without_zero_rows,
    "Winograd for 3x3": partial(without_convolution_gradient, is_winograd),
}


def measure(name: str) -> dict[str, float]:
    """For each mechanism that a network uses, the time of a call without it over that of a call with everything."""
    call = partial(bench_networks.NETWORKS[name]()(igfast), n_steps=N_STEPS)
    call()

    def without(mechanism: Callable[[list[str]], Any], hits: list[str]) -> None:
        with mechanism(hits):
            call()

    calls: dict[str, Callable[[], object]] = {"everything": call}
    for title, mechanism in MECHANISMS.items():
        hits: list[str] = []
        without(mechanism, hits)
        if hits:
            calls[title] = partial(without, mechanism, [])
    seconds = harness.alternate(calls, ROUNDS)
    return {title: harness.ratio(taken, seconds["everything"]) for title, taken in seconds.items()}


def seconds_of_calls(name: str) -> list[float]:
    """Of a few calls with the instruction set that the environment asks for."""
    call = partial(bench_networks.NETWORKS[name]()(igfast), n_steps=N_STEPS)
    return harness.alternate({"": call}, ISA_CALLS)[""]


def measure_isa(name: str) -> dict[str, float]:
    """The time with narrower instruction sets over that with the widest; processes take turns."""
    taken: dict[str, list[float]] = {"": [], "avx2": [], "baseline": []}
    for _ in range(ISA_ROUNDS):
        for isa, medians in taken.items():
            with patch.dict(os.environ, {"IGFAST_CPU_ISA": isa}):
                result = harness.in_own_process("benchmarks.bench_ablation", "--seconds", name)
            medians.append(statistics.median(result["seconds"]))
    return {f"wider than {isa}": harness.ratio(taken[isa], taken[""]) for isa in ("avx2", "baseline")}


def main() -> None:
    """Measures all networks, or some beside the records of the others, and writes the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=bench_networks.NETWORKS, default=list(bench_networks.NETWORKS))
    parser.add_argument("--seconds", metavar="NETWORK", help="for the processes that measure instruction sets")
    options = parser.parse_args()
    if options.seconds is not None:
        print(json.dumps({"seconds": seconds_of_calls(options.seconds)}))
        return
    for name in options.networks:
        ratios = {**measure(name), **measure_isa(name)}
        case = f"{name}, {N_STEPS} steps, float32"
        records = [
            {"benchmark": "ablation", "case": case, "network": name, "without": title, "time_ratio": ratio}
            for title, ratio in ratios.items()
        ]
        for record in records:
            print(f"{name:<30} without {record['without']:<40} {record['time_ratio']:.3f}", flush=True)
        print(harness.update("ablation", records), flush=True)


if __name__ == "__main__":
    main()
