"""The three operators that an attribution is made of: interpolate, accumulate_, scale_.

A path point is a *row*: the triple (example index, alpha, weight). The operators take rows, so that chunks of steps,
parts of a batch and whatever else a plan cuts out look the same to them.

Each runs the compiled kernel where there is one for the tensors' device and dtype, and `igfast.ops.reference`, plain
PyTorch, elsewhere (complex numbers, other devices, a missing build).
"""

from __future__ import annotations

import torch
from torch import Tensor

from igfast.ops import reference as reference
from igfast.ops._load import build_info as build_info
from igfast.ops._load import kernels_for

_KERNEL_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_KERNEL_DIMS = 16  # the batch and 15 feature dimensions; one more (csrc/kernels.h, kMaxDims) may be inserted


def has_kernels(tensor: Tensor) -> bool:
    """Whether the compiled operators take this tensor; if not, the plain-PyTorch reference does."""
    takes = tensor.dtype in _KERNEL_DTYPES and 1 <= tensor.dim() <= _KERNEL_DIMS
    return takes and kernels_for(tensor.device)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that gradients of `dtype` are summed in: at least float32."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def interpolate(
    x: Tensor,
    baseline: Tensor,
    example: Tensor,
    alpha: Tensor,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """Writes path points: `out[r] = baseline[e] + alpha[r] * (x[e] - baseline[e])` with `e = example[r]`.

    At alpha 0 a row is exactly the baseline and at alpha 1 exactly x. The baseline is never expanded in memory.

    Args:
        x: inputs, (batch, *features), floating or complex, any strides.
        baseline: of x's dtype: 0-d, (1, *features) or (batch, *features).
        example: (rows,) int64, values in [0, batch).
        alpha: (rows,) float64.
        memory_format: layout of a new result; ignored when `out` is given.
        out: where to write, (rows, *features) of x's dtype, dense; None makes a new tensor.

    Returns:
        The rows, (rows, *features), of x's dtype; `out` itself if that was given.

    Raises:
        ValueError: shapes do not fit.
        TypeError: dtypes do not fit.
        IndexError: an example index is out of range (on CUDA that stops the device, as in PyTorch).

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3 (the straight-line path).
    """
    if not has_kernels(x):
        return reference.interpolate(x, baseline, example, alpha, memory_format, out)
    if out is None:
        rows: Tensor = torch.ops.igfast.interpolate(x, baseline, example, alpha, memory_format)
        return rows
    torch.ops.igfast.interpolate.out(x, baseline, example, alpha, out=out)
    return out


def accumulate_(acc: Tensor, grads: Tensor, example: Tensor, weight: Tensor, finite: Tensor | None = None) -> None:
    """Adds weighted gradients in place: `acc[example[r]] += weight[r] * grads[r]`, in row order for each example.

    Args:
        acc: (batch, *features), dense, of dtype `accumulator_dtype(grads.dtype)`.
        grads: (rows, *features), any strides.
        example: (rows,) int64, values in [0, batch).
        weight: (rows,) float64.
        finite: (rows,) uint8 or None; entries of rows that hold a NaN or an infinity are set to 0, others are left.

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


def scale_(acc: Tensor, x: Tensor, baseline: Tensor) -> Tensor:
    """Multiplies summed gradients by `x - baseline` in place and returns each example's sum of the result.

    Args:
        acc: (batch, *features), dense, of dtype `accumulator_dtype(x.dtype)`.
        x: (batch, *features), any strides.
        baseline: of x's dtype: 0-d, (1, *features) or (batch, *features).

    Returns:
        (batch,) float64 (complex128 for complex acc): each example's sum, for the convergence delta.

    Raises:
        ValueError: shapes do not fit.
        TypeError: dtypes do not fit.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 1 (the factor) and Proposition 1 (the sum).
    """
    if has_kernels(x):
        sums: Tensor = torch.ops.igfast.scale_(acc, x, baseline)
        return sums
    return reference.scale_(acc, x, baseline)
