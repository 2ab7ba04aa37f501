"""Checks inputs of any dtype that go through a model as they are, because the path begins at a layer behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from igfast.errors import InputError, InputTypeError
from igfast.request.inputs import Inputs, check_baseline, describe, one_for_each


@dataclass(frozen=True)
class ModelInputs:
    """Checked inputs and baselines, (batch, *) each.

    Attributes:
        x: the inputs.
        baselines: one for each input, of its dtype.
        batch: number of examples, the rows of the first input.
    """

    x: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    batch: int

    def as_inputs(self) -> Inputs:
        """Returns the inputs in the form that the forward function takes; no path leads through these inputs."""
        differ = any(x.shape[0] != self.batch for x in self.x)
        why_joint = "the inputs have different numbers of rows" if differ else ""
        return Inputs(self.x, self.baselines, True, (), self.batch, why_joint)


def parse_model_inputs(inputs: Any, baselines: Any) -> ModelInputs:
    """Checks `inputs` and `baselines`, and returns both as `ModelInputs`.

    Raises InputTypeError, InputError (for 0-d inputs), BaselineError and ArgumentTypeError as in `parse_inputs`.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    if not given:
        raise InputTypeError("inputs must be a tensor or a tuple of at least one tensor; got an empty tuple")
    for index, x in enumerate(given):
        if not isinstance(x, Tensor):
            raise InputTypeError(f"inputs must be a tensor or a tuple of tensors; inputs[{index}] is {describe(x)}")
        if x.dim() == 0:
            raise InputError(f"inputs[{index}] must have the examples as its first dimension; got {describe(x)}")
    baselines = one_for_each(baselines, len(given))
    xs = tuple(x.detach() for x in given)
    parsed = tuple(_baseline(index, b, x) for index, (b, x) in enumerate(zip(baselines, xs, strict=True)))
    return ModelInputs(xs, parsed, xs[0].shape[0])


def _baseline(index: int, baseline: object, x: Tensor) -> Tensor:
    if isinstance(baseline, (int, float)):
        return torch.full_like(x, baseline)
    return torch.empty_like(x).copy_(check_baseline(index, baseline, x))
