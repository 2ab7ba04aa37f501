"""Averages over several baselines of each example in one run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from igfast import ops
from igfast.errors import BaselineError
from igfast.memory.scope import MemoryUse
from igfast.model.channels_last import in_channels_last
from igfast.request.inputs import Inputs
from igfast.request.several_baselines import Baselines
from igfast.run.engine import Gradients, RowsOfRule
from igfast.run.path import difference
from igfast.run.quadrature import Rule
from igfast.run.report import Convergence
from igfast.run.steps import Ends


@dataclass(frozen=True)
class PathFromSeveral:
    """The lines from several baselines to each input; line k * batch + e leads from baseline k of example e.

    Attributes:
        x: (batch, *features); for a joint example (1, examples, *features).
        baselines: (K, *features).
        chosen: which baseline each line begins at, (lines,) int64; for a joint example (lines, examples).
    """

    x: Tensor
    baselines: Tensor
    chosen: Tensor

    def ends(self, line: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the inputs and the baselines of some lines, (lines, *features) each."""
        x = self.x.index_select(0, line % len(self.x))
        return x, self.baselines[self.chosen[line]]

    def points(self, line: Tensor, alpha: Tensor, channels_last: bool) -> Tensor:
        """Returns a point on each of some lines, (lines, *features), as a new tensor that a model may keep."""
        x, baseline = self.ends(line)
        points = ops.interpolate(x, baseline, torch.arange(len(line), device=line.device), alpha)
        return in_channels_last(points) if channels_last else points

    def difference(self, line: Tensor) -> Tensor:
        """Returns (x - baseline) of some lines, (lines, *features), at least float32."""
        return difference(*self.ends(line))


def paths_from_several(inputs: Inputs, several: Baselines) -> list[PathFromSeveral]:
    """Returns for each input the lines from its baselines; raises BaselineError where those do not fit."""
    xs = tuple(inputs.join(inputs.x))
    rows = {len(x) for x in xs}
    if len(rows) > 1:
        raise BaselineError(f"Baselines needs inputs with one number of rows; got {sorted(rows)}")
    chosen = torch.from_numpy(np.ascontiguousarray(several.chosen(len(xs[0])))).to(inputs.device)
    return [
        PathFromSeveral(x, baselines, chosen if inputs.joint else chosen.flatten())
        for x, baselines in zip(inputs.x, several.check(xs), strict=True)
    ]


@dataclass(frozen=True)
class OverBaselines:
    """The mean over several baselines of what a rule gives for each.

    Attributes:
        rule: the same for all lines.
        several: the baselines.
        multiplied: whether gradients are multiplied by (x - baseline).
    """

    rule: Rule
    several: Baselines
    multiplied: bool
    in_steps = True
    multiplies_itself = True

    @property
    def n_steps(self) -> int:
        """The path points of an example."""
        return len(self.rule.nodes) * self.several.n_each

    def integrate(
        self,
        gradients: Gradients,
        inputs: Inputs,
        sums: tuple[Tensor, ...],
        ends: Ends,  # noqa: ARG002
        memory: MemoryUse,  # noqa: ARG002
    ) -> Convergence | None:
        """Adds the mean over the baselines to `sums`, multiplied by (x - baseline) where asked for."""
        paths = paths_from_several(inputs, self.several)
        gradients.paths = paths
        # Nodes outermost, then baselines, then examples.
        rows = RowsOfRule.of(self.rule, inputs.batch, gradients.device, n_each=self.several.n_each)
        finite = torch.ones(len(rows), dtype=torch.uint8, device=gradients.device)
        for chunk, part, grads in gradients.of(rows):
            for number, (acc, grad) in enumerate(zip(sums, grads, strict=True)):
                if self.multiplied:
                    grad = grad.to(acc.dtype) * paths[number % len(paths)].difference(part.lines)
                ops.accumulate_(acc, grad, part.example, part.weight, finite[chunk])
            del grads, grad
        gradients.keep_not_finite(finite, rows, None)
        return None
