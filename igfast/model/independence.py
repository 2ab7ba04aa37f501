"""Compares outputs of a step to tell whether the rows of a batch are independent, where shapes do not say so."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class RowsDependError(Exception):
    """Raised where stacked or split rows have other outputs than in a step of their own."""


_IN_16_BITS = 5e-2
_IN_FLOAT64 = 1e-6  # a model may compute parts in float32
_ROUNDED = 8  # times the dtype's epsilon: rounding of a number
_LEAST_SHARE = 2e-3  # of the numbers themselves, which counts as a part of how far rows are apart
_OF_MEDIAN = 0.1  # of the columns, so that columns of rounding alone tell nothing


def distance(output: Any, alone: Any, reference: Tensor | None = None) -> float:
    """Returns how far two outputs are apart, relative to the largest one; infinity if they cannot be compared.

    Args:
        output: of rows that were stacked or split, (rows, *).
        alone: of the same rows in a step of their own, (rows, *).
        reference: outputs of several rows. If given, each column is taken relative to how far these rows are apart in
            it, so that an offset, or columns of large numbers (masked logits), hide nothing.
    """
    if not isinstance(output, Tensor) or not isinstance(alone, Tensor) or output.shape != alone.shape:
        return math.inf
    if not (alone.is_floating_point() or alone.is_complex()) or alone.numel() == 0 or alone.is_meta:
        return 0.0
    finite = alone.isfinite()
    if not torch.equal(finite, output.isfinite()):
        return math.inf
    apart = torch.where(finite, output - alone, 0).abs()
    if float(apart.max()) == 0:
        return 0.0
    if reference is None or len(reference) < 2:
        return float(apart.max()) / max(float(torch.where(finite, alone, 0).abs().max()), 1e-300)
    return float((apart.flatten(1) if apart.dim() > 1 else apart[:, None]).div(_spread(reference)).max())


def _spread(reference: Tensor) -> Tensor:
    """Returns how far apart rows are in each column, (columns,), and no less than what rounding may make of that."""
    values = reference.detach().reshape(len(reference), -1)
    values = torch.where(values.isfinite(), values, 0)
    values = values.abs() if values.is_complex() else values
    spread = values.amax(0) - values.amin(0)
    eps = torch.finfo(values.dtype).eps
    if values.is_cuda and values.dtype is torch.float32 and (rounds_to_tf32() or multiplies_in_tf32()):
        eps = torch.finfo(torch.float16).eps
    share = max(_ROUNDED * eps / rounding((reference,)), _LEAST_SHARE)
    largest = values.abs().amax(0)
    floor = largest.maximum(largest.median()) * share + _OF_MEDIAN * spread.median()
    return (spread + floor).clamp_min(torch.finfo(values.dtype).tiny)


def are_apart(output: Any) -> bool:
    """Returns whether rows differ by more than rounding; True also where there is nothing to compare."""
    if not isinstance(output, Tensor) or len(output) < 2 or output.numel() == 0 or output.is_meta:
        return True
    if not (output.is_floating_point() or output.is_complex()):
        return True
    values = torch.where(output.isfinite(), output, 0)
    apart = float((values - values[:1]).abs().max())
    return apart > _ROUNDED * torch.finfo(output.dtype).eps * float(values.abs().max())


def rounding(tensors: Iterable[Any]) -> float:
    """Returns a `distance` far above what rounding makes, and far below what dependent rows make.

    The coarsest dtype of `tensors` decides: the outputs, and the tensors that these were computed from.
    """
    of_numbers = [t for t in tensors if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())]
    eps = max((torch.finfo(t.dtype).eps for t in of_numbers), default=0.0)
    if eps > torch.finfo(torch.float32).eps or any(map(is_autocast, {t.device.type for t in of_numbers})):
        return _IN_16_BITS
    if eps == torch.finfo(torch.float32).eps:
        return 5e-3
    return _IN_FLOAT64


def worth_a_closer_look(allowed: float, device: torch.device) -> float:
    """Returns a `distance` up to which outputs may differ by rounding alone, as kernels depend on the number of rows.

    For another number of rows, a GPU's kernels compute float32 convolutions in 10 bits, in an order of their own, and a
    network may amplify the difference. On a CPU, more is a model that depends on the number of rows. `allowed` is the
    `rounding` of the same kernels.
    """
    if device.type != "cpu" or allowed >= _IN_16_BITS:
        return 0.3
    return 1e-3 if allowed <= _IN_FLOAT64 else 3e-2


def is_autocast(device_type: str) -> bool:
    """Returns whether autocast is on for devices of a type."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def rounds_to_tf32() -> bool:
    """Returns whether cuDNN may compute float32 convolutions in TF32, whichever of PyTorch's settings says so."""
    backends: Any = torch.backends
    return _is_tf32(backends.cudnn.conv, backends.cudnn, backends)


def multiplies_in_tf32() -> bool:
    """Returns whether cuBLAS may compute float32 matrix products in TF32, whichever of PyTorch's settings says so."""
    backends: Any = torch.backends
    return _is_tf32(backends.cuda.matmul, backends)


def _is_tf32(*settings: Any) -> bool:
    """Returns whether the first setting that was made says so; `allow_tf32` raises where a user made another one."""
    levels = (getattr(one, "fp32_precision", "none") for one in settings)
    return next((level for level in levels if level != "none"), "ieee") == "tf32"
