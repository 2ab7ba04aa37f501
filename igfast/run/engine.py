"""The only loop: rows of the path through the model, chunk by chunk, their weighted gradients into one accumulator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from igfast import ops
from igfast.errors import IgfastMemoryError, warn
from igfast.memory.recovery import free_memory, is_out_of_memory
from igfast.memory.scope import MemoryUse
from igfast.rng import random_state
from igfast.run.path import Path
from igfast.run.plan import ChunkPlan
from igfast.run.quadrature import Rule

_Result = TypeVar("_Result")


class Evaluator(Protocol):
    """What the engine asks of a model: values and gradients at path points."""

    def value(self, points: tuple[Tensor, ...], example: Tensor) -> Tensor:
        """Each row's value, (rows,); the example of each row is (rows,) int64."""

    def gradient(self, points: tuple[Tensor, ...], example: Tensor) -> tuple[Tensor, ...]:
        """Gradients of each row's value, shaped as the path points; the example of each row is (rows,) int64."""

    def save_memory(self) -> str:
        """Takes one more measure that saves memory and costs time; returns which, or "" if none is left."""


@dataclass(frozen=True)
class NotFinite:
    """The first row whose gradient holds a NaN or an infinity, and how many there are."""

    example: int
    step: int
    n_rows: int


@dataclass(frozen=True)
class Integral:
    """What `integrate` returns.

    Attributes:
        sums: for each path, `sum_k w_k dF/dx` of each example, (batch, *features), at least float32.
        not_finite: where gradients were not finite, or None.
        chunks: how many chunks there were of each number of rows; those that had to be repeated are not counted.
        n_evaluations: rows that went forward and backward, repeated ones included.
    """

    sums: tuple[Tensor, ...]
    not_finite: NotFinite | None
    chunks: Counter[int] = field(default_factory=Counter)
    n_evaluations: int = 0


@dataclass
class Loop:
    """A loop over rows in chunks that fit.

    Attributes:
        plan: the chunks; replaced by one of smaller chunks where those do not fit.
        memory: what may be taken.
        save_memory: as `Evaluator.save_memory`, for where one row does not fit.
        describe: what one row is, for messages.
        notes: what had to be done against lack of memory; added to.
        n_evaluations: rows that were evaluated.
        was_halved: whether a chunk was too large.
        n_savings: how many measures were taken at one row.
    """

    plan: ChunkPlan
    memory: MemoryUse
    save_memory: Callable[[], str]
    describe: str
    notes: list[str] = field(default_factory=list)
    n_evaluations: int = 0
    was_halved: bool = False
    n_savings: int = 0

    def over(self, n_rows: int, evaluate: Callable[[slice], _Result]) -> Iterator[tuple[slice, _Result]]:
        """Evaluates all rows, a chunk at a time; one that does not fit in memory again, with less of it.

        Raises:
            IgfastMemoryError: not even one row fits.
        """
        start = 0
        while start < n_rows:
            chunk = slice(start, start + self.plan.next_rows(n_rows - start))
            said: str | None = None
            before = random_state(self.memory.device)
            try:
                self.n_evaluations += chunk.stop - start
                result = evaluate(chunk)
            except Exception as error:  # a model or a library may raise anything when memory runs out
                if not is_out_of_memory(error):
                    raise
                said = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
            if said is not None:  # out of the handler, whose traceback holds what the failed chunk held
                before.restore()
                self._make_do_with_less(chunk.stop - start, said)
                continue
            start = chunk.stop
            yield chunk, result
            del result

    def _make_do_with_less(self, n_rows: int, said: str) -> None:
        free_memory(self.memory.device)
        smaller = self.plan.halved(n_rows)
        if smaller is not None:
            self.plan, self.was_halved = smaller, True
            done = f"chunks of {smaller.rows} instead of {n_rows} rows"
        else:
            done = self.save_memory()
            if not done:
                raise IgfastMemoryError(_does_not_fit(self.describe, self.memory, said))
            self.n_savings += 1
        self.notes.append(done)
        warn(f"out of memory, so the attribution goes on with {done} ({said})")


def _does_not_fit(what: str, memory: MemoryUse, said: str) -> str:
    taken = memory.peak()
    needs = "" if taken is None else f", and needs more than the {taken / 2**20:.0f} MiB that it took before it failed"
    allowed = "" if memory.allowed is None else f" of {memory.allowed / 2**20:.0f} MiB"
    return (
        f"{what} does not fit in the memory{allowed} that is allowed on {memory.device}{needs} ({said}). A larger "
        "memory_budget, a smaller input, a model and input in bfloat16, or a device with more memory would help"
    )


@dataclass(frozen=True)
class Rows:
    """All rows of a rule, steps outermost: row r is example `r % batch` at step `r // batch`.

    Attributes:
        rule: nodes and weights.
        batch: number of examples.
        device: where the tensors are made.
    """

    rule: Rule
    batch: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.rule.nodes) * self.batch

    def example(self) -> Tensor:
        """The example of each row, (rows,) int64."""
        return torch.from_numpy(np.tile(np.arange(self.batch, dtype=np.int64), len(self.rule.nodes))).to(self.device)

    def per_row(self, per_step: ArrayLike) -> Tensor:
        """A number of each step as one of each row, (rows,) float64."""
        return torch.from_numpy(np.repeat(np.asarray(per_step, np.float64), self.batch)).to(self.device)


def integrate(
    paths: Sequence[Path],
    rule: Rule,
    evaluator: Evaluator,
    loop: Loop,
    sums: tuple[Tensor, ...],
    *,
    before: Callable[[int], object] = lambda n_rows: None,  # noqa: ARG005
    after: Callable[[tuple[Tensor, ...]], object] = lambda points: None,  # noqa: ARG005
    on_rows: Callable[[float], object] | None = None,
) -> Integral:
    """Integrates the gradient along straight lines.

    Rows run through the steps, and through the examples within a step. Nothing the size of all rows is ever held but
    three numbers for each.

    Args:
        paths: one for each input, all of one batch size and device.
        rule: nodes and weights.
        evaluator: the model.
        loop: how many rows a chunk has, and what is done where they do not fit.
        sums: an accumulator of zeros for each path.
        before: called with the number of rows of each chunk; what it raises ends the loop.
        after: called with the path points of each chunk once their gradients are there; what it raises ends the loop.
        on_rows: called after each chunk with the number of its rows; None for nothing.

    Returns:
        The weighted sums of gradients, not yet multiplied by x - baseline.

    Raises:
        IgfastMemoryError: not even one row fits.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 3.
    """
    rows = Rows(rule, loop.plan.batch, paths[0].x.device)
    example, alpha, weight = rows.example(), rows.per_row(rule.nodes), rows.per_row(rule.weights)
    finite = torch.ones(len(rows), dtype=torch.uint8, device=rows.device)
    chunks: Counter[int] = Counter()

    def gradients(chunk: slice) -> tuple[Tensor, ...]:
        before(chunk.stop - chunk.start)
        points = tuple(path.points(example[chunk], alpha[chunk], loop.plan.channels_last) for path in paths)
        grads = evaluator.gradient(points, example[chunk])
        after(points)
        return grads

    for chunk, grads in loop.over(len(rows), gradients):
        for acc, grad in zip(sums, grads, strict=True):
            ops.accumulate_(acc, grad, example[chunk], weight[chunk], finite[chunk])
        del grads, grad
        chunks[chunk.stop - chunk.start] += 1
        if len(chunks) == 1 and (peak := loop.memory.peak_of_tensors()):
            loop.plan = loop.plan.fitted(peak / max(chunks), loop.memory.for_tensors)
        if on_rows is not None:
            on_rows(chunk.stop - chunk.start)
    return Integral(sums, _first_not_finite(finite, rows.batch), chunks, loop.n_evaluations)


def _first_not_finite(finite: Tensor, batch: int) -> NotFinite | None:
    if finite.is_meta or bool(finite.all()):
        return None
    bad = torch.nonzero(finite == 0).flatten()
    step, example = divmod(int(bad[0]), batch)
    return NotFinite(example, step, bad.numel())
