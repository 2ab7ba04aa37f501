"""Integrates one number for each position of a layer instead of a whole gradient."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from igfast import ops
from igfast.errors import LayerError, OnePassError
from igfast.model.partial import FromLayer
from igfast.request.inputs import Inputs, describe


@dataclass(kw_only=True)
class PositionSums(FromLayer):
    """The forward function from a layer on, whose gradients are summed over each position's features.

    The integrals are one float64 number for each target and position, not one for each feature. The attribution of a
    position is such a sum, as integrals and sums over features can change places.

    Attributes:
        n_positions: of the layer's value, (1, n_positions, features).
        multiplied: whether gradients are multiplied by (x - baseline) in the sum.
        n_positions_seen: for each target, how many positions it may depend on.
    """

    n_positions: int
    multiplied: bool
    n_positions_seen: tuple[int, ...]
    _is_checked: bool = field(default=False, init=False)
    _differences: Tensor | None = field(default=None, init=False)

    @classmethod
    def of(cls, evaluator: FromLayer, n_positions: int, multiplied: bool, n_positions_seen: list[int]) -> PositionSums:
        """Returns the function with sums over features; raises LayerError if the layer has no such positions."""
        values = evaluator.inputs.x
        if len(values) != 1 or evaluator.inputs.joint or values[0].dim() != 3 or values[0].shape[1] != n_positions:
            got = ", ".join(map(describe, values))
            raise LayerError(
                f"the layer must give out one tensor, (1, {n_positions}, features), with an entry for each token; got "
                f"{got}. Name the embedding layer, or a block of the model"
            )
        given = {one.name: getattr(evaluator, one.name) for one in fields(evaluator) if one.init}
        return cls(**given, n_positions=n_positions, multiplied=multiplied, n_positions_seen=tuple(n_positions_seen))

    @property
    def integrated(self) -> Inputs:
        """Inputs of one number for each position, whose difference from their baselines is 1."""
        x = self.inputs.x[0]
        ones = torch.ones(x.shape[:-1], dtype=torch.float64, device=x.device)
        return replace(self.inputs, x=(ones,), baselines=(torch.zeros_like(ones),))

    def integrand(self, grad: Tensor, target: int) -> Tensor:
        """Returns the sums over features of a target's gradient, (rows, n_positions) float64, or (rows, 1, ...).

        Raises OnePassError if the gradient reaches positions after those that the target may depend on.
        """
        if not self._is_checked:
            self._check_later_positions(grad, target)
        with torch.autocast(grad.device.type, enabled=False):
            grad = grad.to(ops.accumulator_dtype(grad.dtype))
            return (grad * self._difference(grad) if self.multiplied else grad).sum(dim=-1).double()

    def _difference(self, grad: Tensor) -> Tensor:
        if self._differences is None:
            x, baseline = self.inputs.x[0], self.inputs.baselines[0]
            self._differences = x.to(grad.dtype) - baseline.to(grad.dtype)
        return self._differences

    def _check_later_positions(self, grad: Tensor, target: int) -> None:
        later = grad[..., self.n_positions_seen[target] :, :]
        if later.numel() and bool(later.any()):
            raise OnePassError("the prediction of a token depends on tokens after it: its gradient there is not zero")
        self._is_checked = target == len(self.targets) - 1
