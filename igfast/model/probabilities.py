"""Reads a classifier's output as probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from igfast.errors import ArgumentError, OutputError, OutputTypeError
from igfast.request.inputs import describe


def class_probabilities(output: Any, kind: str, batch: int) -> Tensor:
    """Returns a classifier's output as probabilities, (batch, classes) float64: as they are, or the softmax of logits.

    One number for each example becomes two classes, by itself if all are in [0, 1], or else by the logistic function.
    The output of a single example may lack the dimension of examples, as after `squeeze()`.

    `kind` is "probabilities", "logits", or "auto", which guesses. Raises OutputTypeError, OutputError, ArgumentError.
    """
    if kind not in ("auto", "probabilities", "logits"):
        raise ArgumentError(f'output must be "auto", "probabilities" or "logits"; got {kind!r}')
    if not isinstance(output, Tensor):
        raise OutputTypeError(f"the model must return a tensor; got {describe(output)}")
    if output.dim() not in (1, 2) or output.numel() == 0:
        raise OutputError(f"the model must return one number for each class, (batch, classes); got {describe(output)}")
    if output.dim() == 1 and len(output) != batch:
        if batch != 1:
            raise OutputError(
                f"the model must return one entry for each of the {batch} examples; got {describe(output)}"
            )
        output = output.unsqueeze(0)
    values: Tensor = output.detach().double()
    if not torch.isfinite(values).all():
        raise OutputError("the model's output for the baseline holds NaN or infinite numbers")
    if values.dim() == 1 or values.shape[1] == 1:
        values = values.reshape(-1, 1)
        is_probability = kind == "probabilities" or (kind == "auto" and are_in_unit_interval(values))
        one = values if is_probability else values.sigmoid()
        return torch.cat([1 - one, one], dim=1)
    is_probability = kind == "probabilities" or (kind == "auto" and are_probabilities(output))
    return values if is_probability else values.softmax(dim=1)


def are_in_unit_interval(values: Tensor) -> bool:
    """Returns whether all values are in [0, 1]."""
    return bool(((values >= 0) & (values <= 1)).all())


def are_probabilities(output: Tensor) -> bool:
    """Returns whether the rows of an output, (batch, classes), are probabilities: not negative, with sum 1."""
    tolerance = 1e-2 if output.dtype in (torch.half, torch.bfloat16) else 1e-4
    sums = output.double().sum(dim=1)
    return are_in_unit_interval(output) and bool((sums - 1).abs().max() < tolerance)
