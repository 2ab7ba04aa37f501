"""Convolutions: autograd saves the shape of the input and the weight, which the model holds anyway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from igfast._C import lean_convolution
from igfast.lean.handlers import Plain, refuses, sizes

_Size = int | Sequence[int]


def _convolution(n: int) -> Callable[..., Any]:
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
        if (why := refuses(input, weight, bias, dim=n + 2)) is not None:
            return why
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
        if (why := refuses(input, weight, bias, dim=n + 2)) is not None:
            return why
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


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    torch.conv_transpose1d: _transposed_convolution(1),
    torch.conv_transpose2d: _transposed_convolution(2),
    torch.conv_transpose3d: _transposed_convolution(3),
}
