"""Attributes the rows that a call asks for: all in one pass, or token by token."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from igfast import ops
from igfast.errors import OnePassError
from igfast.llm import scores
from igfast.llm.method import Asked, Method
from igfast.llm.one_pass import why_depends_on_length
from igfast.llm.runs import Paths, Scored, integrated
from igfast.llm.teacher import Teacher
from igfast.model.state import buffers_restored
from igfast.run.report import Convergence, RunReport


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        rows: attributions of each number of the teacher to each token of the prompt, (numbers, tokens).
        deltas: of each number, to all positions; None where there is no path.
        changes: of each number, from the baseline to the input; None where there is no path.
        log_probs: of the answer's tokens at the input, (tokens,) float64.
        report: of the run, or of all runs together.
    """

    rows: Tensor
    deltas: Tensor | None
    changes: Tensor | None
    log_probs: Tensor
    report: RunReport


@dataclass(frozen=True)
class Question:
    """What is attributed to what.

    Attributes:
        teacher: of the whole answer; its places are those that are asked for.
        paths: of what the teacher is given.
        attr_target: as in `igfast.LLMGradientAttribution`.
        foil: (tokens,) int64, or None.
    """

    teacher: Teacher
    paths: Paths
    attr_target: str | scores.Score
    foil: Tensor | None

    def at_once(self, method: Method, asked: Asked) -> Found:
        """Returns the attributions from one forward pass for all tokens.

        Raises OnePassError if the model does not score each token as if the answer ended there.
        """
        reason = why_depends_on_length(self.teacher.model, self.paths.ids.shape[1])
        if reason and len(self.teacher.answer) > 1:
            raise OnePassError(reason)
        self._score(self.teacher, self.paths)
        scored = integrated(method, asked, self.teacher, self.paths, is_one_pass=True)
        return self._found([scored], [range(number, number + 1) for number in range(len(self.teacher.places))])

    def token_by_token(self, method: Method, asked: Asked) -> Found:
        """Returns the same attributions from a forward pass for each token, which ends before it.

        Raises OnePassError for the joint probability of several tokens, which no sum over tokens is.
        """
        if self.attr_target == "prob" and any(len(places) > 1 for places in self.teacher.places):
            raise OnePassError("the joint probability of several tokens is attributed in one pass only; use log_prob")
        places = sorted({t for row in self.teacher.places for t in row})
        scored = []
        for t in places:
            teacher = self.teacher.until(t + 1)
            paths = self.paths.until(teacher, t + 1)
            self._score(teacher, paths)
            scored.append(integrated(method, asked, teacher, paths, is_one_pass=False))
        return self._found(scored, [[places.index(t) for t in row] for row in self.teacher.places])

    def _score(self, teacher: Teacher, paths: Paths) -> None:
        def at_input() -> Tensor:
            with torch.no_grad(), buffers_restored(teacher):
                return teacher.logits(paths.ids)[0].log_softmax(dim=-1)

        teacher.score = scores.score_of(self.attr_target, self.foil, at_input)
        teacher.score_name = self.attr_target if isinstance(self.attr_target, str) else None

    def _found(self, scored: list[Scored], rows: list[range] | list[list[int]]) -> Found:
        """Returns what runs found; each row is the sum of some of their numbers."""
        n_prompt, dtype = self.teacher.n_prompt, ops.accumulator_dtype(scored[0].dtype)
        sums = [one for run in scored for one in run.sums]
        deltas = changes = None
        if scored[0].ends is not None:
            pairs = [pair for run in scored for pair in run.ends or ()]
            change = [(end.double() - start.double()).sum().to(sums[0].device) for end, start in pairs]
            delta = [one.sum() - by for one, by in zip(sums, change, strict=True)]
            deltas, changes = (
                torch.stack([torch.stack([each[i] for i in row]).sum() for row in rows]).to(dtype)
                for each in (delta, change)
            )
        found = [torch.stack([sums[i][:n_prompt] for i in row]).sum(dim=0) for row in rows]
        log_probs = torch.cat([run.log_probs if len(scored) == 1 else run.log_probs[-1:] for run in scored])
        return Found(
            torch.stack(found).to(dtype), deltas, changes, log_probs, _together([run.report for run in scored])
        )


def _together(reports: list[RunReport]) -> RunReport:
    """Returns one report of several runs."""
    if len(reports) == 1:
        return reports[0]
    peaks = [report.peak_bytes for report in reports]
    convergences = [report.convergence for report in reports if report.convergence is not None]
    return replace(
        reports[-1],
        n_rows=sum(report.n_rows for report in reports),
        n_evaluations=sum(report.n_evaluations for report in reports),
        chunks=dict(sum((Counter(report.chunks) for report in reports), Counter())),
        peak_bytes=None if None in peaks else max(peak for peak in peaks if peak is not None),
        seconds=sum(report.seconds for report in reports),
        notes=("one run for each token of the answer", *reports[-1].notes),
        ends=None,
        convergence=Convergence.of_runs(convergences) if len(convergences) == len(reports) else None,
    )
