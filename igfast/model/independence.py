"""Compares outputs of a step to tell whether the rows of a batch are independent, where shapes do not say so."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class RowsDependError(Exception):
    """Raised where stacked or split rows have other outputs than in a step of their own."""


WORTH_A_CLOSER_LOOK = 0.3
"""Outputs whose `distance` is below this may differ by rounding alone. For another number of rows, a GPU's kernels
compute float32 convolutions in 10 bits, in an order of their own. A network may amplify the difference."""


def distance(output: Any, alone: Any) -> float:
    """Returns how far two outputs are apart, relative to the largest one; infinity if they cannot be compared.

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
    """Returns a `distance` far above what rounding makes, and far below what dependent rows make.

    The coarsest dtype of `tensors` decides: the outputs, and the tensors that these were computed from.
    """
    of_numbers = [t for t in tensors if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())]
    eps = max((torch.finfo(t.dtype).eps for t in of_numbers), default=0.0)
    if eps > torch.finfo(torch.float32).eps or any(map(is_autocast, {t.device.type for t in of_numbers})):
        return 5e-2
    if eps == torch.finfo(torch.float32).eps:
        return 5e-3
    return 1e-6  # for float64: a model may compute parts in float32


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
