"""Turns summed gradients into attributions, and computes their convergence delta."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from igfast import ops
from igfast.errors import ArgumentError, ArgumentTypeError
from igfast.model.forward import ForwardFunction
from igfast.request.inputs import as_tuple, describe, one_for_each


def by_target(tensors: tuple[Tensor, ...], n_inputs: int) -> list[tuple[Tensor, ...]]:
    """Returns tensors that come target after target as one tuple for each target."""
    return [tensors[start : start + n_inputs] for start in range(0, len(tensors), n_inputs)]


def scale(evaluator: ForwardFunction, sums: tuple[Tensor, ...], multiply_by_inputs: bool) -> tuple[Tensor, ...]:
    """Returns the attributions: the summed gradients, multiplied in place by (x - baseline) where asked for."""
    inputs = evaluator.inputs
    if multiply_by_inputs:
        for acc, x, baseline in zip(sums, inputs.x, inputs.baselines, strict=True):
            ops.scale_(acc.unsqueeze(0) if inputs.joint else acc, x, baseline)
    return sums


def takes_graph(inputs: Any, baselines: Any) -> bool:
    """Returns whether autograd records the product with (input - baseline), as in Captum."""
    tensors = (*as_tuple(inputs), *as_tuple(baselines))
    return torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in tensors)


def scaled_with_graph(sums: tuple[Tensor, ...], inputs: Any, baselines: Any) -> tuple[Tensor, ...]:
    """Returns the sums times (input - baseline), in a graph as Captum's."""
    return tuple(
        acc * (x.to(acc.dtype) - (baseline.to(acc.dtype) if isinstance(baseline, Tensor) else baseline))
        for acc, x, baseline in zip(sums, as_tuple(inputs), one_for_each(baselines, len(sums)), strict=True)
    )


def check_attributions(attributions: tuple[Any, ...], inputs: tuple[Any, ...]) -> None:
    """Raises ArgumentTypeError or ArgumentError if these are not one tensor for each input, with its examples."""
    if len(attributions) != len(inputs) or not all(isinstance(a, Tensor) for a in attributions):
        got = ", ".join(map(describe, attributions))
        raise ArgumentTypeError(f"attributions must be one tensor for each input, {len(inputs)}; got {got}")
    for index, (a, x) in enumerate(zip(attributions, inputs, strict=True)):
        if a.shape[:1] != x.shape[:1]:
            raise ArgumentError(
                f"attributions[{index}] must have the examples of end_point, {describe(x)}; got {describe(a)}"
            )


def convergence_delta(attributions: tuple[Tensor, ...], at_input: Tensor, at_baseline: Tensor) -> Tensor:
    """Returns each example's sum of attributions less F(inputs) - F(baselines), (batch,), in the attributions' dtype.

    Where the output does not have one entry for each row of every input, the totals are compared instead, (1,).

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, Proposition 1.
    """
    dtype = attributions[0].dtype
    for attribution in attributions[1:]:
        dtype = torch.promote_types(dtype, attribution.dtype)
    sums = [_sums_of_examples(attribution) for attribution in attributions]
    device = sums[0].device
    change = at_input.to(device, torch.float64) - at_baseline.to(device, torch.float64)
    if all(of_rows.shape == change.shape for of_rows in sums):
        return (torch.stack(sums).sum(dim=0) - change).to(dtype)
    total = torch.stack([of_rows.sum() for of_rows in sums]).sum()
    return (total - change.sum()).reshape(1).to(dtype)


def _sums_of_examples(attribution: Tensor) -> Tensor:
    """Returns each example's sum over all features, (batch,), in double precision."""
    wide = torch.complex128 if attribution.is_complex() else torch.float64
    return attribution.unsqueeze(-1).flatten(1).sum(dim=1, dtype=wide)
