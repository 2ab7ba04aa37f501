"""The three operators of an attribution: interpolate, accumulate_, scale_.

A path point is a *row*: the triple (example index, alpha, weight). A chunk of steps and a part of a batch are both just
rows to the operators. An operator runs the compiled kernel for the tensors' device and dtype. The fallback is plain
PyTorch, `igfast.ops.reference`: for complex numbers, other devices, or without the compiled operators.
"""

from __future__ import annotations

import torch
from torch import Tensor

from igfast.ops import reference as reference
from igfast.ops._load import build_info as build_info
from igfast.ops._load import kernels_for

_KERNEL_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def has_kernels(tensor: Tensor) -> bool:
    """Returns whether the compiled operators take this tensor; if not, the plain-PyTorch reference does."""
    return tensor.dtype in _KERNEL_DTYPES and kernels_for(tensor.device)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which gradients of `dtype` are summed: at least float32."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def interpolate(x: Tensor, baseline: Tensor, example: Tensor, alpha: Tensor) -> Tensor:
    """Returns path points: row r is `baseline[e] + alpha[r] * (x[e] - baseline[e])` with `e = example[r]`.

    At alpha 0 a row is exactly the baseline and at alpha 1 exactly x. The baseline is never expanded in memory.

    Args:
        x: inputs, (batch, *features), floating or complex; copied first unless contiguous or channels-last.
        baseline: of x's dtype: 0-d, (1, *features) or (batch, *features).
        example: (rows,) int64, values in [0, batch).
        alpha: (rows,) float64.

    Returns:
        The rows, (rows, *features), of x's dtype: channels-last if x is, else contiguous.

    Raises:
        ValueError: shapes do not fit.
        TypeError: dtypes do not fit.
        IndexError: an example index is out of range (on CUDA that stops the device, as in PyTorch).

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3 (the straight-line path).
    """
    if not has_kernels(x):
        return reference.interpolate(x, baseline, example, alpha)
    rows: Tensor = torch.ops.igfast.interpolate(x, baseline, example, alpha)
    return rows


def accumulate_(acc: Tensor, grads: Tensor, example: Tensor, weight: Tensor, finite: Tensor | None = None) -> None:
    """Adds weighted gradients in place: `acc[example[r]] += weight[r] * grads[r]`, in row order for each example.

    Args:
        acc: (batch, *features), contiguous or channels-last, of dtype `accumulator_dtype(grads.dtype)`.
        grads: (rows, *features); copied first where it has another layout than acc.
        example: (rows,) int64, values in [0, batch).
        weight: (rows,) float64.
        finite: (rows,) uint8 or None; set to 0 for rows with a NaN or an infinity, left unchanged for others.

    Raises:
        ValueError: shapes do not fit.
        TypeError: dtypes do not fit.
        IndexError: an example index is out of range (on CUDA that stops the device, as in PyTorch).

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 3 (the sum over steps).
    """
    if has_kernels(grads):
        torch.ops.igfast.accumulate_(acc, grads, example, weight, finite)
    else:
        reference.accumulate_(acc, grads, example, weight, finite)


def scale_(acc: Tensor, x: Tensor, baseline: Tensor) -> None:
    """Multiplies summed gradients by `x - baseline` in place.

    Args:
        acc: (batch, *features), contiguous or channels-last, of dtype `accumulator_dtype(x.dtype)`.
        x: (batch, *features); copied first where it has another layout than acc.
        baseline: of x's dtype: 0-d, (1, *features) or (batch, *features).

    Raises:
        ValueError: shapes do not fit.
        TypeError: dtypes do not fit.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 1.
    """
    if has_kernels(x):
        torch.ops.igfast.scale_(acc, x, baseline)
    else:
        reference.scale_(acc, x, baseline)
