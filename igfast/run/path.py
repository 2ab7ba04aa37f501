"""A straight line from a baseline to an input, and its points in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from igfast import ops
from igfast.model.channels_last import CHANNELS_LAST, in_channels_last
from igfast.request.inputs import Inputs


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
        """Returns the path points of some rows, (rows, *features), as a new tensor that a model may keep.

        Channels-last x gives channels-last points. Other x does if `channels_last` and `may_be_channels_last(x)`.
        """
        points = ops.interpolate(self.x, self.baseline, example, alpha)
        return in_channels_last(points) if channels_last else points


def straight_line(x: Tensor, baseline: Tensor) -> Path:
    """Returns the path from a baseline to x; copies once what the operators would copy for each chunk."""
    order = torch.contiguous_format
    if x.dim() in CHANNELS_LAST and not x.is_contiguous() and x.is_contiguous(memory_format=CHANNELS_LAST[x.dim()]):
        order = CHANNELS_LAST[x.dim()]
    ends = (end if end.dim() == 0 else end.contiguous(memory_format=order) for end in (x, baseline))
    return Path(*ends)


def points_at(inputs: Inputs, alphas: Tensor) -> tuple[Tensor, ...]:
    """Returns the point of each example at its alpha, (batch, *features) for each input; `alphas` is (batch,)."""
    example = torch.arange(inputs.batch, device=inputs.device)
    lines = map(straight_line, inputs.x, inputs.baselines)
    return tuple(line.points(example, alphas, channels_last=False) for line in lines)


def differences(inputs: Inputs, rows: slice | Tensor) -> list[Tensor]:
    """Returns (x - baseline) of some examples, (rows, *features) for each input, at least float32."""
    found = []
    for x, baseline in zip(inputs.x, inputs.baselines, strict=True):
        start = baseline[rows] if baseline.dim() and len(baseline) == len(x) else baseline
        found.append(difference(x[rows], start))
    return found


def difference(x: Tensor, baseline: Tensor) -> Tensor:
    """Returns (x - baseline), at least float32."""
    dtype = ops.accumulator_dtype(x.dtype)
    return x.to(dtype) - baseline.to(dtype)


def accumulator(x: Tensor) -> Tensor:
    """Returns zeros to sum gradients in: shaped as x, contiguous, at least float32."""
    return torch.zeros(x.shape, dtype=ops.accumulator_dtype(x.dtype), device=x.device)
