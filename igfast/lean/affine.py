"""Convolutions, linear maps and batch normalisation: they keep their weights, which the model holds anyway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from igfast._C import (
    lean_addmm,
    lean_batch_norm,
    lean_convolution,
    lean_linear,
    lean_matmul,
    lean_mul,
)
from igfast.lean._handlers import NOTHING_TO_SAVE, Plain, is_parameter, refuses, sizes
from igfast.ops._load import kernels_for

_Size = int | Sequence[int]


def _convolution(n: int) -> Callable[..., Any]:
    """The handler of conv1d, conv2d or conv3d."""
    no_output_padding = (0,) * n

    def handler(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Size = 1,
        padding: _Size | str = 0,
        dilation: _Size = 1,
        groups: int = 1,
    ) -> Tensor | Plain:
        """Takes the arguments of that function."""
        why = refuses(input, weight)
        if why is not None or input.dim() != n + 2:
            return NOTHING_TO_SAVE if why is None else why
        dilation = sizes(dilation, n)
        if isinstance(padding, str):
            overlap = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            if padding == "same" and any(cells % 2 for cells in overlap):
                return Plain("padding that is not symmetric")
            padding = [cells // 2 for cells in overlap] if padding == "same" else 0
        return lean_convolution(  # type: ignore[no-any-return]
            input, weight, bias, sizes(stride, n), sizes(padding, n), dilation, False, no_output_padding, groups
        )

    return handler


def _transposed_convolution(n: int) -> Callable[..., Any]:
    """The handler of conv_transpose1d, conv_transpose2d or conv_transpose3d."""

    def handler(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Size = 1,
        padding: _Size = 0,
        output_padding: _Size = 0,
        groups: int = 1,
        dilation: _Size = 1,
    ) -> Tensor | Plain:
        """Takes the arguments of that function."""
        why = refuses(input, weight)
        if why is not None or input.dim() != n + 2:
            return NOTHING_TO_SAVE if why is None else why
        return lean_convolution(  # type: ignore[no-any-return]
            input,
            weight,
            bias,
            sizes(stride, n),
            sizes(padding, n),
            sizes(dilation, n),
            True,
            sizes(output_padding, n),
            groups,
        )

    return handler


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | Plain:
    why = refuses(input, weight)
    if why is not None or weight.dim() != 2:
        return NOTHING_TO_SAVE if why is None else why
    return lean_linear(input, weight, bias)  # type: ignore[no-any-return]


def _matmul(input: Tensor, other: Tensor) -> Tensor | Plain:
    """Only with a matrix of weights on the right; the product of two activations needs both."""
    if not is_parameter(other) or other.dim() != 2 or input.dim() < 2:
        return NOTHING_TO_SAVE
    why = refuses(input, other)
    return lean_matmul(input, other) if why is None else why


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, **scales: Any) -> Tensor | Plain:
    if scales or not is_parameter(mat2) or not is_parameter(input):
        return NOTHING_TO_SAVE
    why = refuses(mat1, mat2)
    return lean_addmm(input, mat1, mat2) if why is None else why


def _mul(input: Any, other: Any, **options: Any) -> Tensor | Plain:
    """Only with weights on one side."""
    if is_parameter(input):
        input, other = other, input
    if options or not is_parameter(other) or is_parameter(input) or not isinstance(input, Tensor):
        return NOTHING_TO_SAVE
    why = refuses(input, other)
    return lean_mul(input, other) if why is None else why


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Tensor | Plain:
    if training or running_mean is None or running_var is None:
        return Plain("batch norm in training mode")
    why = refuses(input, running_var, *([] if weight is None else [weight]))
    if why is not None:
        return why
    if not (input.is_cpu or kernels_for(input.device)):
        return Plain(f"no kernel for {input.device.type}")
    return lean_batch_norm(input, weight, bias, running_mean, running_var, eps)  # type: ignore[no-any-return]


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,  # noqa: ARG001
) -> Tensor | Plain:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    torch.conv_transpose1d: _transposed_convolution(1),
    torch.conv_transpose2d: _transposed_convolution(2),
    torch.conv_transpose3d: _transposed_convolution(3),
    F.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    torch.mm: _matmul,
    Tensor.mm: _matmul,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    torch.mul: _mul,
    Tensor.mul: _mul,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _torch_batch_norm,
}
