"""Sends the rows of a path through the model, chunk by chunk, and adds their weighted gradients up."""

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
    """Computes a model's values and gradients at path points, as the loop over chunks asks for them."""

    def value(self, points: tuple[Tensor, ...], example: Tensor) -> Tensor:
        """Returns each row's value, (rows,); `example` is the example of each row, (rows,) int64."""

    def gradient(self, points: tuple[Tensor, ...], example: Tensor) -> tuple[Tensor, ...]:
        """Returns the gradients of each row's value, shaped as the path points; `example` as in `value`."""

    def save_memory(self) -> str:
        """Takes one more measure that saves memory and costs time; returns its description, or "" if none is left."""


@dataclass(frozen=True)
class NotFinite:
    """The first row whose gradient holds a NaN or an infinity, and the number of such rows."""

    example: int
    step: int
    n_rows: int


@dataclass(frozen=True)
class Integral:
    """The result of `integrate`.

    Attributes:
        sums: for each path, `sum_k w_k dF/dx` of each example, (batch, *features), at least float32.
        not_finite: where gradients were not finite, or None.
        chunks: number of chunks for each chunk size in rows; chunks that had to be repeated are not counted.
        n_evaluations: rows that went forward and backward, repeated rows included.
    """

    sums: tuple[Tensor, ...]
    not_finite: NotFinite | None
    chunks: Counter[int] = field(default_factory=Counter)
    n_evaluations: int = 0


@dataclass
class Loop:
    """A loop over rows in chunks that fit in memory.

    Attributes:
        plan: the sizes of chunks; replaced by a plan of smaller chunks where those do not fit.
        memory: the memory that the call may take.
        save_memory: as `Evaluator.save_memory`, called where one row does not fit.
        describe: what one row is, for messages.
        notes: the measures taken against lack of memory; added to.
        n_evaluations, n_savings: number of rows that were evaluated, and of measures that `save_memory` took.
        was_halved: whether a chunk was too large.
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
        """Yields each chunk of the rows with its result; a chunk that does not fit in memory is halved and repeated.

        Raises IgfastMemoryError if one row does not fit and `save_memory` has no measure left.
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
            if said is not None:  # outside the handler, whose traceback holds the failed chunk's tensors
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
    """Rows of a rule, steps outermost: row r is example `r % batch` at step `r // batch`; tensors are on `device`."""

    rule: Rule
    batch: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.rule.nodes) * self.batch

    def example(self) -> Tensor:
        """Returns the example of each row, (rows,) int64."""
        return torch.from_numpy(np.tile(np.arange(self.batch, dtype=np.int64), len(self.rule.nodes))).to(self.device)

    def per_row(self, per_step: ArrayLike) -> Tensor:
        """Returns for each row the value that `per_step` has for its step, (rows,) float64."""
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
    """Integrates the gradient along straight lines; the returned sums are not yet multiplied by (x - baseline).

    All examples of a step come before the next step. Only three numbers and a flag are held for every row.

    Args:
        paths: one for each input, all of one batch size and device.
        rule: nodes and weights.
        evaluator: the model.
        loop: the sizes of chunks, and what is done where a chunk does not fit in memory.
        sums: an accumulator of zeros for each path.
        before: called before each chunk with its number of rows; an exception from `before` ends the loop.
        after: called after each chunk's gradients with its path points; an exception from `after` ends the loop.
        on_rows: called after each chunk with its number of rows, or None.

    Raises IgfastMemoryError if not even one row fits.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 3.
    """
    rows = Rows(rule, loop.plan.batch, paths[0].x.device)
    example, alpha, weight = rows.example(), rows.per_row(rule.nodes), rows.per_row(rule.weights)
    finite = torch.ones(len(rows), dtype=torch.uint8, device=rows.device)
    chunks: Counter[int] = Counter()

    def gradients(chunk: slice) -> tuple[Tensor, ...]:
        before(chunk.stop - chunk.start)
        if not chunks:
            loop.memory.restart_peak()  # its peak per row decides on the size of the others
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
