"""Integrates with the same steps for every example, by a rule that is known in advance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from igfast.memory.scope import MemoryUse
from igfast.request.inputs import Inputs
from igfast.run.engine import Gradients, NotFinite, Rows
from igfast.run.quadrature import Rule
from igfast.run.report import Convergence

Ends = Callable[[], list[tuple[Tensor, Tensor]]]
"""Returns F(inputs) and F(baselines) of each target, one number for each entry of the output."""


class Quadrature(Protocol):
    """A way to integrate gradients along the paths of all examples."""

    @property
    def n_steps(self) -> int:
        """The path points of an example, as far as they are known in advance."""

    @property
    def in_steps(self) -> bool:
        """Whether all examples have the same steps, so that a chunk of whole steps is several calls stacked."""

    @property
    def is_scaled(self) -> bool:
        """Whether the sums are multiplied by (x - baseline) already."""

    def integrate(
        self, gradients: Gradients, inputs: Inputs, sums: tuple[Tensor, ...], ends: Ends, memory: MemoryUse
    ) -> Convergence | None:
        """Adds the integrated gradients of each example to `sums`, multiplied by (x - baseline) if `is_scaled`.

        Returns how far the integrals are from their limits, if that is known.
        """

    def place_of(self, not_finite: NotFinite) -> str:
        """Returns where on the path a row is, for messages."""


@dataclass(frozen=True)
class FixedSteps:
    """The same rule for every example."""

    rule: Rule
    in_steps = True
    is_scaled = False

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
        memory: MemoryUse,  # noqa: ARG002
    ) -> Convergence | None:
        """Adds the weighted gradients of all steps to `sums`."""
        gradients.summed(Rows.of_rule(self.rule, inputs.batch, gradients.device), sums, inputs.batch)
        return None

    def place_of(self, not_finite: NotFinite) -> str:
        """Returns the step and its alpha."""
        return f"step {not_finite.step} of {self.n_steps} (alpha {not_finite.alpha:.4g})"
