"""Fake kernels of the compiled operators: output shapes and dtypes for torch.compile and fake tensors."""

from __future__ import annotations

import torch
import torch._prims_common
from torch import Tensor


@torch.library.register_fake("igfast::interpolate")
def _interpolate(x: Tensor, baseline: Tensor, example: Tensor, alpha: Tensor) -> Tensor:  # noqa: ARG001
    memory_format = torch._prims_common.suggest_memory_format(x)
    return torch.empty((example.shape[0], *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=memory_format)


@torch.library.register_fake("igfast::accumulate_")
def _accumulate_(acc: Tensor, grads: Tensor, example: Tensor, weight: Tensor, finite: Tensor | None = None) -> None:
    """Does nothing: the operator works in place on `acc` and `finite`, and has no output."""


@torch.library.register_fake("igfast::scale_")
def _scale_(acc: Tensor, x: Tensor, baseline: Tensor) -> None:
    """Does nothing: the operator works in place on `acc`, and has no output."""


@torch.library.register_fake("igfast::lean_gate")
def _lean_gate(x: Tensor, activation: str, low: float, high: float, slope: float) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x)


@torch.library.register_fake("igfast::lean_gate_")
def _lean_gate_(x: Tensor, activation: str, low: float, high: float, slope: float) -> Tensor:  # noqa: ARG001
    return x


@torch.library.register_fake("igfast::lean_max_pool")
def _lean_max_pool(
    input: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> Tensor:
    pool = torch.nn.functional.max_pool2d if len(kernel) == 2 else torch.nn.functional.max_pool3d
    return pool(input, kernel, stride, padding, dilation, ceil_mode)
