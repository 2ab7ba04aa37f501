"""Whether the rows of a batch are independent, where shapes do not say it: by the outputs of one step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class RowsDependError(Exception):
    """Rows that were stacked or split have other outputs than in a step of their own."""


WORTH_A_CLOSER_LOOK = 0.3
"""Outputs that are apart by less than this, of the largest one, may be so by rounding: a GPU's kernels for another
number of rows compute float32 convolutions in 10 bits each in their own order, and a network may amplify it."""


def distance(output: Any, alone: Any) -> float:
    """How far two outputs for the same rows are apart, of the largest one; infinite where they cannot be compared.

    Args:
        output: of rows that were stacked or split, (rows, *).
        alone: of the same rows in a step of their own, (rows, *).
    """
    if not isinstance(output, Tensor) or not isinstance(alone, Tensor) or output.shape != alone.shape:
        return math.inf
    if not (alone.is_floating_point() or alone.is_complex()) or alone.numel() == 0 or alone.is_meta:
        return 0.0
    finite = alone.isfinite()
    if not torch.equal(finite, output.isfinite()):
        return math.inf
    apart = float(torch.where(finite, output - alone, 0).abs().max())
    return 0.0 if apart == 0 else apart / max(float(torch.where(finite, alone, 0).abs().max()), 1e-300)


def rounding(tensors: Iterable[Any]) -> float:
    """How far outputs may be apart that differ by rounding alone: far more than that, far less than what rows share.

    Args:
        tensors: the outputs, and what they were computed from; the coarsest dtype of all decides.
    """
    of_numbers = [t for t in tensors if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())]
    eps = max((torch.finfo(t.dtype).eps for t in of_numbers), default=0.0)
    if eps > torch.finfo(torch.float32).eps or any(map(_is_autocast, {t.device.type for t in of_numbers})):
        return 5e-2
    if eps == torch.finfo(torch.float32).eps:
        return 5e-3
    return 1e-6  # of float64, parts of which a model may compute in float32


def _is_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
