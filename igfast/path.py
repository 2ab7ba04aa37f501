"""A straight line from a baseline to an input, and its points in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from igfast import ops

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The layouts of images and volumes with their channels last in memory, by number of dimensions."""


def may_be_channels_last(x: Tensor) -> bool:
    """Whether a model is to see `x` channels-last where that is a choice.

    Not in float64, where an EfficientNet-Lite0 takes 2.2 times as long so, a ResNet-50 and a VGG-16 0.95. And PyTorch's
    float64 convolutions of channels-last images with all cells equal, as many baselines have them, differ in the last
    digit from place to place: a max pool that follows has other winners than in the caller's layout.
    """
    return x.dim() in CHANNELS_LAST and x.dtype not in (torch.float64, torch.complex128)


@dataclass(frozen=True)
class Path:
    """A straight line from a baseline to an input, and the buffer that its points are written to.

    Attributes:
        x: (batch, *features), floating or complex.
        baseline: of x's dtype: 0-d, (1, *features) or (batch, *features).
    """

    x: Tensor
    baseline: Tensor
    _buffer: list[Tensor] = field(default_factory=list, init=False)

    def points(self, example: Tensor, alpha: Tensor, channels_last: bool) -> Tensor:
        """The path points of some rows, (rows, *features), in a buffer that the next call overwrites.

        They have the layout of x, so that a model that was given channels-last images gets channels-last points, or
        are channels-last if so asked and that exists for x.
        """
        n_rows = example.shape[0]
        channels_last = channels_last and may_be_channels_last(self.x)
        memory_format = CHANNELS_LAST[self.x.dim()] if channels_last else self.memory_format
        fits = self._buffer and self._buffer[0].shape[0] >= n_rows and self._buffer[0].untyped_storage().nbytes() > 0
        if not fits or not self._buffer[0].is_contiguous(memory_format=memory_format):
            self._buffer.clear()  # freed before the next one is made
            shape = (n_rows, *self.x.shape[1:])
            self._buffer.append(
                torch.empty(shape, dtype=self.x.dtype, device=self.x.device, memory_format=memory_format)
            )
        return ops.interpolate(self.x, self.baseline, example, alpha, out=self._buffer[0][:n_rows])

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of x."""
        if self.x.dim() in CHANNELS_LAST and not self.x.is_contiguous():
            memory_format = CHANNELS_LAST[self.x.dim()]
            if self.x.is_contiguous(memory_format=memory_format):
                return memory_format
        return torch.contiguous_format

    def zeros(self) -> Tensor:
        """A new accumulator, (batch, *features), laid out as the path points are."""
        dtype = ops.accumulator_dtype(self.x.dtype)
        return torch.zeros_like(self.x, dtype=dtype, memory_format=self.memory_format)
