"""Plain PyTorch of every operator: what the kernels are tested against, and what runs where there is no kernel."""

from __future__ import annotations

import torch
from torch import Tensor


def _rows_of(tensor: Tensor, example: Tensor) -> Tensor:
    """The rows of a 0-d, (1, *features) or (batch, *features) tensor, broadcastable to (rows, *features)."""
    if tensor.dim() == 0 or tensor.shape[0] == 1:
        return tensor
    return tensor.index_select(0, example)


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    """(rows,) float64 as (rows, 1, ..., 1), to multiply with (rows, *features)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def interpolate(x: Tensor, baseline: Tensor, example: Tensor, alpha: Tensor) -> Tensor:
    """As `igfast.ops.interpolate`."""
    ends = _rows_of(x, example), _rows_of(baseline, example)
    a = _per_row(alpha, x)
    # In float64 for float32, so that a point is the correctly rounded one.
    math = torch.float64 if x.dtype is torch.float32 else torch.promote_types(x.dtype, torch.float32)
    rows = (ends[1].to(math) + a.to(math) * (ends[0].to(math) - ends[1].to(math))).to(x.dtype)
    # The ends themselves, without rounding, and without the other end's NaN.
    return torch.where(a == 0, ends[1], torch.where(a == 1, ends[0], rows))


def accumulate_(acc: Tensor, grads: Tensor, example: Tensor, weight: Tensor, finite: Tensor | None = None) -> None:
    """As `igfast.ops.accumulate_`."""
    grads = grads.to(acc.dtype)
    acc.index_add_(0, example, grads * _per_row(weight, grads).to(acc.dtype))
    if finite is not None:
        finite.logical_and_(torch.isfinite(grads).flatten(1).all(dim=1) if grads.dim() > 1 else torch.isfinite(grads))


def scale_(acc: Tensor, x: Tensor, baseline: Tensor) -> None:
    """As `igfast.ops.scale_`."""
    acc.mul_(x.to(acc.dtype) - baseline.to(acc.dtype))


def sum_examples(acc: Tensor) -> Tensor:
    """Each example's sum over all features, (batch,), in double precision."""
    wide = torch.complex128 if acc.is_complex() else torch.float64
    return acc.unsqueeze(-1).flatten(1).sum(dim=1, dtype=wide)
