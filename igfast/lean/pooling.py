"""Pooling and padding: autograd saves the shape of the input, and for max pooling one byte per output element."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from operator import gt, index
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from igfast._C import lean_adaptive_avg_pool, lean_avg_pool, lean_max_pool, lean_pad
from igfast.lean.handlers import NOTHING_TO_SAVE, Plain, lacks_kernel, refuses, sizes

_Size = int | Sequence[int]
_MOST_CELLS = 256  # of a window: one byte numbers them


def _strides(stride: _Size | None, kernel: Sequence[int], n: int) -> Sequence[int]:
    """Returns a window's strides; None and an empty list mean the kernel size, as in PyTorch."""
    return kernel if stride is None or (isinstance(stride, Sequence) and not stride) else sizes(stride, n)


class _Window(NamedTuple):
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[int, ...]
    spacing: tuple[int, ...]
    spans: tuple[int, ...]  # cells of the input from a window's first to its last


@functools.lru_cache(maxsize=1024)
def _window(n: int, kernel_size: _Size, stride: _Size | None, padding: _Size, dilation: _Size) -> _Window | Plain:
    """Returns the window of an `n`-d max pool, or why the call cannot be lean."""
    kernel, spacing, edge = (tuple(sizes(value, n)) for value in (kernel_size, dilation, padding))
    strides = tuple(_strides(stride, kernel, n))
    are_complete = all(len(numbers) == n for numbers in (kernel, strides, edge, spacing))
    are_positive = all(number > 0 for number in (*kernel, *strides, *spacing))
    if not are_complete or not are_positive or not all(0 <= p <= k // 2 for p, k in zip(edge, kernel, strict=True)):
        return NOTHING_TO_SAVE  # PyTorch raises its own error
    if prod(kernel) > _MOST_CELLS:
        return Plain(f"a window of more than {_MOST_CELLS} cells")
    return _Window(kernel, strides, edge, spacing, tuple((k - 1) * d + 1 for k, d in zip(kernel, spacing, strict=True)))


def _integers(value: _Size | None) -> Any:
    """Returns a cache key for `_window`; refuses floats as PyTorch does, since a key 2.0 would find the entry of 2."""
    if isinstance(value, (tuple, list)):
        return tuple(map(index, value))
    return None if value is None else index(value)  # type: ignore[arg-type]  # also takes NumPy's integers


def _max_pool(n: int) -> Callable[..., Any]:
    def handler(
        input: Tensor,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        dilation: _Size = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor | Plain:
        if (why := refuses(input, dim=n + 2)) is not None:
            return why
        if return_indices:
            return Plain("its indices are asked for")
        if (why := lacks_kernel(input)) is not None:
            return why
        window = _window(n, _integers(kernel_size), _integers(stride), _integers(padding), _integers(dilation))
        if isinstance(window, Plain):
            return window
        if input.numel() == 0:
            return NOTHING_TO_SAVE
        if any(map(gt, window.spans, input.shape[2:])):
            return Plain("a window that exceeds its input")
        kernel, strides, edge, spacing, _ = window
        if n > 1:
            return lean_max_pool(input, kernel, strides, edge, spacing, ceil_mode)  # type: ignore[no-any-return]
        (k,), (s,), (p,), (d,) = kernel, strides, edge, spacing  # a 2d pool over height 1, as in PyTorch
        output = lean_max_pool(input.unsqueeze(2), [1, k], [1, s], [0, p], [1, d], ceil_mode)
        return output.squeeze(2)  # type: ignore[no-any-return]

    return handler


def _avg_pool(n: int) -> Callable[..., Any]:
    def handler(
        input: Tensor,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor | Plain:
        if (why := refuses(input, dim=n + 2)) is not None:
            return why
        kernel = sizes(kernel_size, n)
        strides = _strides(stride, kernel, n)
        return lean_avg_pool(  # type: ignore[no-any-return]
            input, kernel, strides, sizes(padding, n), ceil_mode, count_include_pad, divisor_override
        )

    return handler


def _avg_pool1d(
    input: Tensor,
    kernel_size: _Size,
    stride: _Size | None = None,
    padding: _Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor | Plain:
    if (why := refuses(input, dim=3)) is not None:
        return why
    kernel = sizes(kernel_size, 1)
    (k,), (s,), (p,) = kernel, _strides(stride, kernel, 1), sizes(padding, 1)
    output = lean_avg_pool(input.unsqueeze(2), [1, k], [1, s], [0, p], ceil_mode, count_include_pad, None)
    return output.squeeze(2)  # type: ignore[no-any-return]


def _adaptive_avg_pool(n: int) -> Callable[..., Any]:
    def handler(input: Tensor, output_size: Any) -> Tensor | Plain:
        if (why := refuses(input, dim=n + 2)) is not None:
            return why
        output = (output_size,) * n if isinstance(output_size, int) else tuple(output_size)
        if None in output:
            output = tuple(size if w is None else w for w, size in zip(output, input.shape[2:], strict=True))
        if output == (1,) * n:  # PyTorch takes the mean, which saves nothing
            return NOTHING_TO_SAVE
        return lean_adaptive_avg_pool(input, output)  # type: ignore[no-any-return]

    return handler


def _pad(
    input: Tensor,
    pad: Any,
    mode: str = "constant",
    value: float | None = None,  # noqa: ARG001
) -> Tensor | Plain:
    if (why := refuses(input)) is not None:
        return why
    # In PyTorch only these two modes save the input. lean_pad pads all of *sizes of a (batch, channels, *sizes) input.
    if mode not in ("reflect", "replicate") or len(pad) != 2 * (input.dim() - 2):
        return NOTHING_TO_SAVE
    return lean_pad(input, list(pad), mode)  # type: ignore[no-any-return]


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    F.max_pool1d: _max_pool(1),
    F.max_pool2d: _max_pool(2),
    F.max_pool3d: _max_pool(3),
    torch.max_pool1d: _max_pool(1),
    torch.max_pool2d: _max_pool(2),
    torch.max_pool3d: _max_pool(3),
    F.avg_pool1d: _avg_pool1d,
    F.avg_pool2d: _avg_pool(2),
    F.avg_pool3d: _avg_pool(3),
    F.adaptive_avg_pool2d: _adaptive_avg_pool(2),
    F.adaptive_avg_pool3d: _adaptive_avg_pool(3),
    F.pad: _pad,
}
