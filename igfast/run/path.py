"""A straight line from a baseline to an input, and its points in memory."""

from __future__ import annotations

from dataclasses import dataclass

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
    """A straight line from a baseline to an input.

    Attributes:
        x: (batch, *features), floating or complex.
        baseline: of x's dtype: 0-d, (1, *features) or (batch, *features).
    """

    x: Tensor
    baseline: Tensor

    def points(self, example: Tensor, alpha: Tensor, channels_last: bool) -> Tensor:
        """The path points of some rows, (rows, *features), as a new tensor: a model may keep what it is given.

        They have the layout of x, so that a model that was given channels-last images gets channels-last points, or
        are channels-last if so asked and that exists for x.
        """
        channels_last = channels_last and may_be_channels_last(self.x)
        memory_format = CHANNELS_LAST[self.x.dim()] if channels_last else self.memory_format
        return ops.interpolate(self.x, self.baseline, example, alpha, memory_format)

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
