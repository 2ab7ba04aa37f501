"""Channels-last images and volumes: which tensors can be, and whether a forward pass has convolutions that gain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_TRANSPOSED = frozenset({torch.conv_transpose2d, torch.conv_transpose3d})
_CONVOLUTIONS = _TRANSPOSED | {torch.conv2d, torch.conv3d}

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The layouts of images and volumes with their channels last in memory, by number of dimensions."""


def may_be_channels_last(x: Tensor) -> bool:
    """Whether igfast may pass an input to the model in channels-last layout that is not so already.

    Not in float64. An EfficientNet-Lite0 takes 2.2 times as long so, a ResNet-50 and a VGG-16 0.95. And PyTorch's
    float64 convolutions of channels-last images with all cells equal, as many baselines have them, differ in the last
    digit from place to place. A max pool that follows then has other winners than in the caller's layout.
    """
    if x.dim() not in CHANNELS_LAST or x.dtype in (torch.float64, torch.complex128):
        return False
    return x.is_contiguous() or not x.is_contiguous(memory_format=CHANNELS_LAST[x.dim()])


def in_channels_last(x: Tensor) -> Tensor:
    """The input in channels-last layout where that is allowed, else the input itself."""
    if not may_be_channels_last(x):
        return x
    return torch.empty_like(x, memory_format=CHANNELS_LAST[x.dim()]).copy_(x)


class ConvolutionWatch(TorchFunctionMode):
    """Watches the calls of a forward pass.

    Attributes:
        gains: whether there was a 2-d or 3-d convolution that does more than cut its input into patches, as the first
            layer of a vision transformer does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gains = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by PyTorch for every function, method and attribute of tensors."""
        if func in _CONVOLUTIONS and not self.gains:
            self.gains = func in _TRANSPOSED or not _cuts_patches(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _cuts_patches(
    input: Tensor,  # noqa: A002, ARG001  # the names of PyTorch's functions
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
