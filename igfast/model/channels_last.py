"""Tells which tensors may become channels-last, and whether a forward pass has convolutions that gain from that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from igfast.function_mode import FunctionMode

_TRANSPOSED = frozenset({torch.conv_transpose2d, torch.conv_transpose3d})
_CONVOLUTIONS = _TRANSPOSED | {torch.conv2d, torch.conv3d}

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The channels-last memory formats of images and volumes, by number of dimensions."""


def may_be_channels_last(x: Tensor) -> bool:
    """Returns whether igfast may convert an input to channels-last layout; False if the input has that layout.

    float64 is excluded. An EfficientNet-Lite0 takes 2.2 times as long in channels-last, a ResNet-50 and a VGG-16 0.95.
    PyTorch's float64 convolutions of constant channels-last images (many baselines) also differ in the last digit from
    place to place. A max pool after such a convolution has other winners than in the caller's layout.
    """
    if x.dim() not in CHANNELS_LAST or x.dtype in (torch.float64, torch.complex128):
        return False
    return x.is_contiguous() or not x.is_contiguous(memory_format=CHANNELS_LAST[x.dim()])


def in_channels_last(x: Tensor) -> Tensor:
    """Returns a copy of the input in channels-last layout where that is allowed, else the input itself."""
    if not may_be_channels_last(x):
        return x
    return torch.empty_like(x, memory_format=CHANNELS_LAST[x.dim()]).copy_(x)


class ConvolutionWatch(FunctionMode):
    """Watches a forward pass for convolutions that gain from channels-last images.

    Attributes:
        gains: whether a 2-d or 3-d convolution ran, other than a vision transformer's cut into patches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gains = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not torch.compiler.is_compiling() and func in _CONVOLUTIONS and not self.gains:
            self.gains = func in _TRANSPOSED or not _cuts_patches(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _cuts_patches(
    input: Tensor,  # noqa: A002, ARG001  # PyTorch's names
    weight: Tensor,
    bias: Tensor | None = None,  # noqa: ARG001
    stride: Any = 1,
    *_: Any,
    **__: Any,
) -> bool:
    strides = stride if isinstance(stride, (tuple, list)) else (stride,)
    widths = weight.shape[2:]
    if len(strides) == 1:
        strides = tuple(strides) * len(widths)
    return all(s >= w > 1 for s, w in zip(strides, widths, strict=True))
