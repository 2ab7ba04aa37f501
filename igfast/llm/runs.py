"""Integrates the scores of an answer's tokens along the paths of a prompt's tokens."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from igfast.attr import LayerIntegratedGradients
from igfast.errors import OnePassError
from igfast.llm.method import Asked, Method
from igfast.llm.one_pass import why_not_one_pass
from igfast.llm.position_sums import PositionSums
from igfast.llm.teacher import Teacher
from igfast.model.state import undisturbed
from igfast.request.model_inputs import AtLayer
from igfast.request.target import Target
from igfast.run.report import RunReport


@dataclass(frozen=True)
class Paths:
    """The paths of what a model is given, (1, positions) each.

    Attributes:
        ids: at the input.
        start: at the baseline.
        at_layer: instead, the layer's values at the baseline; None where `start` holds.
        moves: (positions,) bool, the positions at which `at_layer` holds; the layer's values stay at the others.
    """

    ids: Tensor
    start: Tensor
    at_layer: AtLayer | None
    moves: Tensor

    def until(self, teacher: Teacher, n_tokens: int) -> Paths:
        """Returns the paths for the teacher of the answer's first tokens."""
        ids, start = (teacher.without_end(one, n_tokens) for one in (self.ids, self.start))
        at_layer, moves = self.at_layer, self.moves[: ids.shape[1]]
        if at_layer is not None and isinstance(at_layer.value, Tensor):
            at_layer = AtLayer(at_layer.value[:, : ids.shape[1]])
        return Paths(ids, start, at_layer, moves)


@dataclass(frozen=True)
class Scored:
    """What one run found.

    Attributes:
        sums: for each number of the teacher, its attribution to each position, (positions,) float64.
        ends: for each number, its value at the input and at the baseline, (1,); None where there is no path.
        log_probs: of the answer's tokens at the input, (tokens,) float64.
        report: of the run.
        dtype: of the layer's value.
    """

    sums: list[Tensor]
    ends: list[tuple[Tensor, Tensor]] | None
    log_probs: Tensor
    report: RunReport
    dtype: torch.dtype


def integrated(method: Method, asked: Asked, teacher: Teacher, paths: Paths, is_one_pass: bool) -> Scored:
    """Returns the attributions of each of the teacher's numbers to each position.

    Raises:
        OnePassError: `is_one_pass`, and the model does not score each token as if the answer ended there.
        LayerError: the layer has no entry for each token.
    """
    device_ids = method.device_ids or getattr(teacher.model, "device_ids", None)
    explainer = LayerIntegratedGradients(teacher, method.layer, device_ids, method.multiplied, **vars(method.options))
    targets = tuple(Target((number,)) for number in range(len(teacher.places)))
    at_layer = AtLayer(0.0) if method.is_gradient else paths.at_layer
    start = paths.start if at_layer is None else at_layer
    asking = (paths.ids, start, targets, None, asked.at_input, asked.grad_kwargs, asked.internal_batch_size)
    with undisturbed(teacher), ExitStack() as stack:
        with teacher.recorded() as seen:  # the passes at the input, and at the baseline where that is ids
            of_layer = stack.enter_context(explainer._igfast_run(*asking))
        kind = None if teacher.kind is None else (of_layer.kind, teacher.kind)
        layers = PositionSums.of(of_layer.evaluator, paths.ids.shape[1], method.multiplied, teacher.n_positions_seen)  # type: ignore[arg-type]
        evaluator = _fixed(layers, paths.moves) if paths.at_layer and not method.is_gradient else layers
        run = replace(of_layer, evaluator=evaluator, kind=kind)
        if is_one_pass:
            at_ends = list(zip((paths.ids, paths.start), seen, strict=False))
            reason = why_not_one_pass(teacher, at_ends)
            if reason:
                raise OnePassError(reason)
        sums = run.integrate(asked.quadrature)
        ends = None if method.is_gradient else run.ends()
        return Scored([one.reshape(-1) for one in sums], ends, seen[0], run.report(), layers.inputs.x[0].dtype)


def _fixed(layers: PositionSums, moves: Tensor) -> PositionSums:
    """Returns the function with paths that lead nowhere at the positions that do not move."""
    x, baseline = layers.inputs.x[0], layers.inputs.baselines[0]
    start = torch.where(moves[None, :, None].to(x.device), baseline, x)
    return replace(layers, inputs=replace(layers.inputs, baselines=(start,)))
