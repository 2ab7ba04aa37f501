"""Integrates with the same steps for every example, by a rule that is known in advance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from igfast.memory.scope import MemoryUse
from igfast.request.inputs import Inputs
from igfast.run.engine import Gradients, RowsOfRule
from igfast.run.path import differences
from igfast.run.quadrature import Array, Rule
from igfast.run.report import Convergence

_BYTES_AT_ONCE = 2**24

Ends = Callable[[], list[tuple[Tensor, Tensor]]]
"""Returns F(inputs) and F(baselines) of each target, one number for each entry of the output."""


class Quadrature(Protocol):
    """A way to integrate gradients along the paths of all examples."""

    @property
    def n_steps(self) -> int:
        """The path points of an example, as far as they are known in advance."""

    @property
    def in_steps(self) -> bool:
        """Whether rows come step after step, each with the examples in the caller's order."""

    @property
    def multiplies_itself(self) -> bool:
        """Whether `integrate` multiplies by (x - baseline) where that is asked for, so that the caller must not."""

    def integrate(
        self, gradients: Gradients, inputs: Inputs, sums: tuple[Tensor, ...], ends: Ends, memory: MemoryUse
    ) -> Convergence | None:
        """Adds the integrated gradients of each example to `sums`, multiplied where asked for if `multiplies_itself`.

        Returns how far the integrals are from their limits, if that is known.
        """


@dataclass(frozen=True)
class FixedSteps:
    """The same rule for every example.

    Attributes:
        rule: where gradients are taken, and what each counts.
        halves: (n_steps,) float64, the weights of `halves_of`, whose sum tells the error; None where that is not asked.
        multiplied: whether attributions are multiplied by (x - baseline), for their norms.
    """

    rule: Rule
    halves: Array | None = None
    multiplied: bool = True
    in_steps = True
    multiplies_itself = False

    @property
    def n_steps(self) -> int:
        """The nodes of the rule."""
        return len(self.rule.nodes)

    def integrate(
        self,
        gradients: Gradients,
        inputs: Inputs,
        sums: tuple[Tensor, ...],
        ends: Ends,  # noqa: ARG002
        memory: MemoryUse,
    ) -> Convergence | None:
        """Adds the weighted gradients of all steps to `sums`, and returns how far two halves of them are apart."""
        rows = RowsOfRule.of(self.rule, inputs.batch, gradients.device, halves=self.halves)
        if self.halves is None or any(acc.is_meta for acc in sums):
            gradients.summed(rows, sums, inputs.batch)
            return None
        n_bytes = sum(acc.nbytes for acc in sums)
        try:
            with memory.for_results(n_bytes):
                apart = tuple(map(torch.zeros_like, sums))
            gradients.summed(rows, sums, inputs.batch, apart)
            return self._convergence(inputs, sums, apart)
        finally:
            memory.release(n_bytes)

    def _convergence(self, inputs: Inputs, sums: tuple[Tensor, ...], apart: tuple[Tensor, ...]) -> Convergence:
        """Returns the errors that the difference of the two rules tells; of several targets, the largest."""
        n_inputs = len(inputs.x)
        of_targets = []
        for first in range(0, len(sums), n_inputs):
            between, norms = (self._norms(inputs, part[first : first + n_inputs]).numpy() for part in (apart, sums))
            with np.errstate(divide="ignore", invalid="ignore"):
                relative = np.where(between == 0, 0.0, between / norms)
            of_targets.append(np.where(np.isfinite(relative), relative, np.inf))
        return Convergence.of_differences([self.n_steps] * inputs.batch, np.max(of_targets, axis=0).tolist())

    def _norms(self, inputs: Inputs, sums: tuple[Tensor, ...]) -> Tensor:
        """Returns the L2 norm of each example's attributions, (batch,) float64 on the CPU; a few examples at a time."""
        n_rows = max(1, _BYTES_AT_ONCE // max(1, sum(acc[0].nbytes for acc in sums)))
        found = []
        for start in range(0, inputs.batch, n_rows):
            rows = slice(start, start + n_rows)
            parts = [acc[rows] for acc in sums]
            if self.multiplied:
                parts = [part * by for part, by in zip(parts, differences(inputs, rows), strict=True)]
            squares = [_wide(part).reshape(len(part), -1).norm(dim=1).square() for part in parts]
            found.append(torch.stack(squares).sum(dim=0).sqrt())
        return torch.cat(found).cpu()


def _wide(part: Tensor) -> Tensor:
    """Returns numbers in double precision: squares of small ones would be 0 in single."""
    return part.to(torch.complex128) if part.is_complex() else part.double()
