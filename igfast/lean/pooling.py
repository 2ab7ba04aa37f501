"""Pooling and padding: they keep the shape of their input, and max pooling a byte for each output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from igfast.lean._handlers import NOTHING_TO_SAVE, Plain, refuses, sizes
from igfast.ops._load import kernels_for

_Size = int | Sequence[int]
_MOST_CELLS = 256  # that one byte can number
_LARGE_BYTES, _MANY_CHANNELS = 2**20, 16  # of an image around which a constant is quicker to write than everywhere
_lean_max_pool = torch.ops.igfast.lean_max_pool.default
_lean_avg_pool = torch.ops.igfast.lean_avg_pool.default
_lean_adaptive_avg_pool = torch.ops.igfast.lean_adaptive_avg_pool.default
_lean_constant_pad = torch.ops.igfast.lean_constant_pad.default
_lean_pad = torch.ops.igfast.lean_pad.default


def _strides(stride: _Size | None, kernel: Sequence[int], n: int) -> Sequence[int]:
    """Those of a window: by default one window follows the other, which an empty list says too."""
    return kernel if stride is None or stride == () or stride == [] else sizes(stride, n)


def _is_valid(input: Tensor, n: int, *window: Sequence[int]) -> bool:
    """Whether a window is one; what PyTorch says of the others is for itself to say."""
    kernel, strides, padding, spacing = window
    if any(len(numbers) != n for numbers in window) or input.numel() == 0:
        return False
    are_positive = all(number > 0 for numbers in (kernel, strides, spacing) for number in numbers)
    return are_positive and all(0 <= p <= k // 2 for p, k in zip(padding, kernel, strict=True))


def _max_pool(n: int) -> Callable[..., Any]:
    """The handler of max_pool1d, max_pool2d or max_pool3d."""

    def handler(
        input: Tensor,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        dilation: _Size = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor | Plain:
        """Takes the arguments of that function."""
        why = refuses(input)
        if why is not None or input.dim() != n + 2:
            return NOTHING_TO_SAVE if why is None else why
        if return_indices or not (input.is_cpu or kernels_for(input.device)):
            return Plain("its indices are asked for" if return_indices else f"no kernel for {input.device.type}")
        kernel, spacing = sizes(kernel_size, n), sizes(dilation, n)
        window = kernel, _strides(stride, kernel, n), sizes(padding, n), spacing
        if not _is_valid(input, n, *window):
            return NOTHING_TO_SAVE
        if prod(kernel) > _MOST_CELLS:
            return Plain(f"a window of more than {_MOST_CELLS} cells")
        if any((k - 1) * d + 1 > size for k, d, size in zip(kernel, spacing, input.shape[2:], strict=True)):
            return Plain("a window that exceeds its input")
        if n > 1:
            return _lean_max_pool(input, *window, ceil_mode)  # type: ignore[no-any-return]
        (k,), (s,), (p,), (d,) = window  # 1-d pooling is 2-d pooling over a height of 1, in PyTorch too
        output = torch.ops.igfast.lean_max_pool(input.unsqueeze(2), [1, k], [1, s], [0, p], [1, d], ceil_mode)
        return output.squeeze(2)  # type: ignore[no-any-return]

    return handler


def _avg_pool(n: int) -> Callable[..., Any]:
    """The handler of avg_pool2d or avg_pool3d."""

    def handler(
        input: Tensor,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor | Plain:
        """Takes the arguments of that function."""
        why = refuses(input)
        if why is not None or input.dim() != n + 2:
            return NOTHING_TO_SAVE if why is None else why
        kernel = sizes(kernel_size, n)
        strides = _strides(stride, kernel, n)
        return _lean_avg_pool(  # type: ignore[no-any-return]
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
    why = refuses(input)
    if why is not None or input.dim() != 3:
        return NOTHING_TO_SAVE if why is None else why
    kernel = sizes(kernel_size, 1)
    (k,), (s,), (p,) = kernel, _strides(stride, kernel, 1), sizes(padding, 1)
    output = torch.ops.igfast.lean_avg_pool(
        input.unsqueeze(2), [1, k], [1, s], [0, p], ceil_mode, count_include_pad, None
    )
    return output.squeeze(2)  # type: ignore[no-any-return]


def _adaptive_avg_pool(n: int) -> Callable[..., Any]:
    """The handler of adaptive_avg_pool2d or adaptive_avg_pool3d."""

    def handler(input: Tensor, output_size: Any) -> Tensor | Plain:
        """Takes the arguments of that function."""
        why = refuses(input)
        if why is not None or input.dim() != n + 2:
            return NOTHING_TO_SAVE if why is None else why
        wanted = [output_size] * n if isinstance(output_size, int) else list(output_size)
        output = [size if w is None else w for w, size in zip(wanted, input.shape[2:], strict=True)]
        if all(size == 1 for size in output):  # a mean, which keeps nothing
            return NOTHING_TO_SAVE
        return _lean_adaptive_avg_pool(input, output)  # type: ignore[no-any-return]

    return handler


def _has_quick_border(input: Tensor, pad: Any) -> bool:
    """Whether a constant is quicker to write around an input than everywhere.

    It takes 0.6 to 0.8 of PyTorch's time for large channels-last images, but 0.8 to 1.9 for contiguous ones, whose
    border is in short stretches.
    """
    if not input.is_cpu or input.nbytes < _LARGE_BYTES or input.dim() not in (4, 5):
        return False
    layout = torch.channels_last if input.dim() == 4 else torch.channels_last_3d
    has_long_stretches = input.shape[1] >= _MANY_CHANNELS and input.is_contiguous(memory_format=layout)
    is_border = len(pad) in (2, 4, 6) and len(pad) <= 2 * input.dim() - 4 and all(n >= 0 for n in pad) and any(pad)
    return has_long_stretches and is_border


def _pad(
    input: Tensor,
    pad: Any,
    mode: str = "constant",
    value: float | None = None,
) -> Tensor | Plain:
    why = refuses(input)
    if why is None and mode == "constant" and _has_quick_border(input, pad):
        return _lean_constant_pad(input, list(pad), 0.0 if value is None else value)  # type: ignore[no-any-return]
    # Other modes keep nothing; these two keep their input, over the last dimensions of a (batch, channels, *sizes).
    if why is not None or mode not in ("reflect", "replicate") or len(pad) != 2 * (input.dim() - 2):
        return NOTHING_TO_SAVE if why is None else why
    return _lean_pad(input, list(pad), mode)  # type: ignore[no-any-return]


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
