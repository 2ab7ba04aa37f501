"""Whether a forward pass gains from channels-last images: seen in its calls, whatever the forward function is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_TRANSPOSED = frozenset({torch.conv_transpose2d, torch.conv_transpose3d})
_CONVOLUTIONS = _TRANSPOSED | {torch.conv2d, torch.conv3d}


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
