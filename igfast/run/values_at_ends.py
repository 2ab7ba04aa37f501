"""Computes each target's values where the paths end or begin, forward only, in parts where memory does not hold all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from igfast.model.forward import ForwardFunction
from igfast.request.several_baselines import Baselines
from igfast.run.engine import Loop
from igfast.run.over_baselines import paths_from_several
from igfast.run.path import straight_line
from igfast.run.plan import ChunkPlan


def values_of(evaluator: ForwardFunction, output: Any) -> list[Tensor]:
    """Returns each target's values of the output of a whole batch, one number for each entry, as (batch,) copies."""
    example = evaluator.all_examples()
    return [one.clone() for one in evaluator.selected(evaluator.with_entries(output, example), example)]


def values_at(
    evaluator: ForwardFunction, alpha: float, whole: Callable[[], Any], rows: int, loop: Callable[[ChunkPlan], Loop]
) -> list[Tensor]:
    """Returns each target's values at an end of the paths.

    Args:
        evaluator: the attributed function; its inputs are the paths' ends.
        alpha: 1 for the inputs, 0 for the baselines.
        whole: returns the output for the whole batch.
        rows: rows of the first chunk.
        loop: makes the loop that takes a plan's chunks.
    """
    inputs, example = evaluator.inputs, evaluator.all_examples()

    def values(chunk: slice) -> list[Tensor]:
        n_rows = chunk.stop - chunk.start
        if n_rows == inputs.batch:
            return values_of(evaluator, whole())
        alphas = torch.full((n_rows,), alpha, dtype=torch.float64, device=inputs.device)
        paths = map(straight_line, inputs.x, inputs.baselines)
        points = tuple(path.points(example[chunk], alphas, channels_last=False) for path in paths)
        return evaluator.selected_at(points, example[chunk])

    plan = ChunkPlan(n_rows=inputs.batch, rows=rows, row_bytes=inputs.row_bytes)
    parts = [part for _, part in loop(plan).over(inputs.batch, values)]
    return [one[0] if len(one) == 1 else torch.cat(one) for one in zip(*parts, strict=True)]


def values_at_several_baselines(
    evaluator: ForwardFunction, several: Baselines, rows: int, loop: Callable[[ChunkPlan], Loop]
) -> tuple[list[Tensor], tuple[float, ...]]:
    """Returns the mean over several baselines of each target's values, and how far the first target's spread."""
    inputs = evaluator.inputs
    paths = paths_from_several(inputs, several)
    lines = torch.arange(several.n_each * inputs.batch, device=inputs.device)

    def values(chunk: slice) -> list[Tensor]:
        points = tuple(path.ends(lines[chunk])[1] for path in paths)
        return evaluator.selected_at(points, lines[chunk] % inputs.batch)

    plan = ChunkPlan(n_rows=len(lines), rows=min(rows, len(lines)), row_bytes=inputs.row_bytes)
    parts = [part for _, part in loop(plan).over(len(lines), values)]
    each = [
        torch.cat([part.reshape(-1) for part in one]).double().unflatten(0, (several.n_each, -1))
        for one in zip(*parts, strict=True)
    ]
    return [one.mean(dim=0) for one in each], tuple(each[0].std(dim=0, correction=0).tolist())
