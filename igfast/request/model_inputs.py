"""Checks inputs of any dtype that go through a model as they are, because the path begins at a layer behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from igfast.errors import BaselineError, InputError, InputTypeError
from igfast.request.inputs import Inputs, check_baseline, describe, one_for_each


@dataclass(frozen=True)
class AtLayer:
    """A baseline that is the layer's own value, in the place of an input that leads to it; for layers alone.

    Attributes:
        value: a number for all of the layer's values; or a tensor of the shape of the layer's value or (1, *features),
            and a tuple with one for each tensor where the layer, or the list of layers, has several.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 6.4, where texts start at zero embeddings.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(8, 2))
        >>> explainer = igfast.LayerIntegratedGradients(model, model[0])
        >>> explainer.attribute(torch.tensor([[3, 5]]), igfast.baselines.AtLayer(0.0), target=1).shape
        torch.Size([1, 2, 4])
    """

    value: Any

    def for_values(self, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the baselines of a layer's values; raises BaselineError and ArgumentTypeError."""
        is_number = isinstance(self.value, (int, float))
        given = one_for_each((self.value,) * len(values) if is_number else self.value, len(values))
        for one, value in zip(given, values, strict=True):
            if isinstance(one, Tensor) and one.shape not in (value.shape, (1, *value.shape[1:])):
                raise BaselineError(
                    f"AtLayer must have a number, or a tensor of the shape of the layer's value, {tuple(value.shape)} "
                    f"or {(1, *value.shape[1:])}; got {describe(one)}"
                )
        return tuple(_baseline(index, one, value) for index, (one, value) in enumerate(zip(given, values, strict=True)))


def parse_model_inputs(inputs: Any, baselines: Any) -> Inputs:
    """Checks `inputs` and `baselines`, and returns both as `Inputs`, of any dtype and in their own shapes.

    No path leads through these inputs, so joint ones get no leading dimension of 1.

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
    differ = len({x.shape[0] for x in xs}) > 1
    why_joint = "the inputs have different numbers of rows" if differ else ""
    return Inputs(xs, parsed, True, (), xs[0].shape[0], why_joint)


def _baseline(index: int, baseline: object, x: Tensor) -> Tensor:
    given = torch.tensor(baseline) if isinstance(baseline, (int, float)) else check_baseline(index, baseline, x)
    result = torch.empty_like(x).copy_(given)
    if not (x.is_floating_point() or x.is_complex()) and not torch.equal(result, given.to(x.device).expand_as(x)):
        raise BaselineError(
            f"baselines[{index}] must hold numbers of the input's dtype, {x.dtype}; got {describe(baseline)}"
        )
    return result
