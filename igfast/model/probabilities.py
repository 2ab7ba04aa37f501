"""Tells whether a classifier gives probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def are_in_unit_interval(values: Tensor) -> bool:
    """Returns whether all values are in [0, 1]."""
    return bool(((values >= 0) & (values <= 1)).all())


def are_probabilities(output: Tensor) -> bool:
    """Returns whether the rows of an output, (batch, classes), are probabilities: not negative, with sum 1."""
    tolerance = 1e-2 if output.dtype in (torch.half, torch.bfloat16) else 1e-4
    sums = output.double().sum(dim=1)
    return are_in_unit_interval(output) and bool((sums - 1).abs().max() < tolerance)
