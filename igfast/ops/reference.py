"""Every operator in plain PyTorch: the reference that tests compare with, and the fallback without a kernel."""

from __future__ import annotations

import torch
from torch import Tensor


def _rows_of(tensor: Tensor, example: Tensor) -> Tensor:
    """Returns a 0-d, (1, *features) or (batch, *features) tensor as broadcastable to (rows, *features)."""
    if tensor.dim() == 0 or tensor.shape[0] == 1:
        return tensor
    return tensor.index_select(0, example)


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    """Reshapes (rows,) float64 to (rows, 1, ..., 1), to multiply with (rows, *features)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def interpolate(x: Tensor, baseline: Tensor, example: Tensor, alpha: Tensor) -> Tensor:
    """Does what `igfast.ops.interpolate` does."""
    ends = _rows_of(x, example), _rows_of(baseline, example)
    a = _per_row(alpha, x)
    # float64 arithmetic makes a float32 point the correctly rounded one.
    math = torch.float64 if x.dtype is torch.float32 else torch.promote_types(x.dtype, torch.float32)
    rows = (ends[1].to(math) + a.to(math) * (ends[0].to(math) - ends[1].to(math))).to(x.dtype)
    # At alpha 0 and 1 the ends themselves, without rounding and without a NaN of the other end.
    return torch.where(a == 0, ends[1], torch.where(a == 1, ends[0], rows))


def accumulate_(acc: Tensor, grads: Tensor, example: Tensor, weight: Tensor, finite: Tensor | None = None) -> None:
    """Does what `igfast.ops.accumulate_` does."""
    grads = grads.to(acc.dtype)
    acc.index_add_(0, example, grads * _per_row(weight, grads).to(acc.dtype))
    if finite is not None:
        finite.logical_and_(torch.isfinite(grads).flatten(1).all(dim=1) if grads.dim() > 1 else torch.isfinite(grads))


def scale_(acc: Tensor, x: Tensor, baseline: Tensor) -> None:
    """Does what `igfast.ops.scale_` does."""
    acc.mul_(x.to(acc.dtype) - baseline.to(acc.dtype))
