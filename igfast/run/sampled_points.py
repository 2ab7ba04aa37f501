"""Takes one gradient for each example, at a place of its own on its path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from igfast import ops
from igfast.memory.scope import MemoryUse
from igfast.request.inputs import Inputs
from igfast.run.engine import Gradients, Rows
from igfast.run.report import Convergence
from igfast.run.steps import Ends


@dataclass(frozen=True)
class SampledPoints:
    """The gradient of each example at one alpha.

    Attributes:
        alphas: (batch,) float64, in [0, 1].
        n_copies: how many examples in a row are copies of one example of the caller's.
    """

    alphas: Tensor
    n_copies: int = 1
    in_steps = True
    multiplies_itself = False
    n_steps = 1

    def integrate(
        self,
        gradients: Gradients,
        inputs: Inputs,
        sums: tuple[Tensor, ...],
        ends: Ends,  # noqa: ARG002
        memory: MemoryUse,  # noqa: ARG002
    ) -> Convergence | None:
        """Adds each example's gradient to `sums`."""
        alphas = self.alphas.to(gradients.device)
        if inputs.joint and bool((alphas != 1).any()):
            gradients.paths = [_WholeStep(x, b, alphas) for x, b in zip(inputs.x, inputs.baselines, strict=True)]
        n_copies = 1 if inputs.joint else self.n_copies
        # The first copies of all examples, then the second ones: steps as the caller's own call.
        example = torch.arange(inputs.batch, device=gradients.device).view(-1, n_copies).T.reshape(-1)
        alpha = alphas[:1] if inputs.joint else alphas[example]
        rows = Rows(example, alpha, torch.ones_like(alpha))
        gradients.summed(rows, sums)
        return None


@dataclass(frozen=True)
class _WholeStep:
    """One call of the model with each example at its own alpha; x and the baseline have a leading dimension of 1."""

    x: Tensor
    baseline: Tensor
    alphas: Tensor

    def points(self, line: Tensor, alpha: Tensor, channels_last: bool) -> Tensor:  # noqa: ARG002
        """Returns the points of all examples, (1, batch, *features)."""
        x, baseline = self.x[0], self.baseline if self.baseline.dim() == 0 else self.baseline[0]
        example = torch.arange(len(x), device=x.device)
        return ops.interpolate(x, baseline.contiguous(), example, self.alphas).unsqueeze(0)
