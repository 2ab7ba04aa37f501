"""Measures the overhead of a lean operator's call over the plain call, on tensors too small to matter.

Part of the overhead is PyTorch's dispatch to a mode, which a mode that only passes calls on measures. Writes
results/lean.jsonl: microseconds of a forward pass, and of a forward pass with its gradient.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks import harness
from igfast.ops import build_info

CALLS = 300  # timed together
CHANNELS = 8


def operators() -> dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]]:
    """A call of each operator, as a model makes it, and the shape of its input."""
    row, line, image, volume = ((1, CHANNELS, *[4] * n) for n in range(4))
    square = nn.Parameter(torch.randn(CHANNELS, CHANNELS))
    one_for_each = nn.Parameter(torch.randn(CHANNELS))
    return {
        "conv1d": (nn.Conv1d(CHANNELS, CHANNELS, 1), line),
        "conv2d": (nn.Conv2d(CHANNELS, CHANNELS, 1), image),
        "conv3d": (nn.Conv3d(CHANNELS, CHANNELS, 1), volume),
        "conv_transpose2d": (nn.ConvTranspose2d(CHANNELS, CHANNELS, 1), image),
        "linear": (nn.Linear(CHANNELS, CHANNELS), row),
        "matmul": (lambda x: x @ square, row),
        "addmm": (lambda x: torch.addmm(one_for_each, x, square), row),
        "mul": (lambda x: x * one_for_each, row),
        "batch_norm": (nn.BatchNorm2d(CHANNELS).eval(), image),
        "relu": (nn.ReLU(), image),
        "hardtanh": (nn.Hardtanh(), image),
        "leaky_relu": (nn.LeakyReLU(), image),
        "threshold": (nn.Threshold(0, 0), image),
        "max_pool1d": (nn.MaxPool1d(2), line),
        "max_pool2d": (nn.MaxPool2d(2), image),
        "max_pool3d": (nn.MaxPool3d(2), volume),
        "avg_pool2d": (nn.AvgPool2d(2), image),
        "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d(2), image),
        "pad, reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), image),
    }


class Passing(TorchFunctionMode):
    """Passes all calls on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch for every function of tensors."""
        return func(*args, **kwargs) if kwargs else func(*args)


def modes() -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """What the calls are made in."""
    from igfast.lean.mode import LeanMode  # the import needs the compiled operators

    return {"plain": nullcontext, "mode": Passing, "lean": LeanMode}


def many(
    operator: Callable[[Tensor], Tensor],
    x: Tensor,
    mode: Callable[[], AbstractContextManager[Any]],
    with_gradient: bool,
) -> Callable[[], None]:
    """`CALLS` calls of an operator in a mode, and then their gradients."""
    grad = torch.ones_like(operator(x))

    def run() -> None:
        with mode():
            outputs = [operator(x) for _ in range(CALLS)]
        if with_gradient:
            for output in outputs:
                torch.autograd.grad(output, x, grad)

    return run


def measure(name: str, rounds: int) -> dict[str, Any]:
    """The record of an operator: the least of the rounds, since what disturbs so short a call only adds to it."""
    operator, shape = operators()[name]
    x = torch.randn(shape, requires_grad=True)
    record: dict[str, Any] = {"benchmark": "lean", "operator": name, "calls": CALLS, "rounds": rounds}
    for what, with_gradient in {"forward": False, "both": True}.items():
        cases = {name: many(operator, x, mode, with_gradient) for name, mode in modes().items()}
        seconds = harness.alternate(cases, rounds)
        record[f"{what}_us"] = {case: min(taken) / CALLS * 1e6 for case, taken in seconds.items()}
    return record


def extra(plain: float, mode: float, lean: float) -> str:
    """Microseconds of a lean call beyond others, in words."""
    return f"{lean - plain:5.1f} us over plain, {lean - mode:5.1f} over a mode"


def main() -> None:
    """Measures all operators and writes the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=51)
    rounds = parser.parse_args().rounds
    build_info()  # loads the kernels
    records = [measure(name, rounds) for name in operators()]
    print(harness.write("lean", records))
    for r in records:
        forward, both = ([r[f"{what}_us"][case] for case in modes()] for what in ("forward", "both"))
        print(f"{r['operator']:<20} forward: {extra(*forward)}; with its gradient: {extra(*both)}")


if __name__ == "__main__":
    main()
