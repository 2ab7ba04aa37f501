"""Sends path points through the model, chunk by chunk, and gives or sums their gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from igfast import ops
from igfast.errors import IgfastMemoryError, warn
from igfast.memory.recovery import free_memory, is_out_of_memory
from igfast.memory.scope import MemoryUse
from igfast.model.forward import ForwardFunction
from igfast.model.guard import Guard
from igfast.rng import random_state
from igfast.run.plan import ChunkPlan
from igfast.run.quadrature import Rule

_Result = TypeVar("_Result")


class Lines(Protocol):
    """Straight lines through the inputs' space."""

    @property
    def x(self) -> Tensor:
        """The inputs."""

    def points(self, line: Tensor, alpha: Tensor, channels_last: bool) -> Tensor:
        """Returns a point on each of some lines, (rows, *features), as a new tensor."""


@dataclass(frozen=True)
class NotFinite:
    """The first row whose gradient holds a NaN or an infinity, and the number of such rows.

    Attributes:
        example, alpha: where that row is.
        step: the step of a rule that every example shares; None if there is none.
        n_rows: the number of such rows.
    """

    example: int
    alpha: float
    step: int | None
    n_rows: int

    def place(self, n_steps: int) -> str:
        """Returns where on the path the row is, for messages; `n_steps` are those of the rule."""
        alpha = f"alpha {self.alpha:.4g}"
        return alpha if self.step is None else f"step {self.step} of {n_steps} ({alpha})"


@dataclass(frozen=True)
class Rows:
    """Path points to send through the model; every tensor has one entry for each row.

    Attributes:
        example: (rows,) int64.
        alpha: (rows,) float64.
        weight: (rows,) float64, what the row's gradient counts.
        line: (rows,) int64, the line of the paths that the row lies on; None where each example has one.
        halves: (rows,) float64, another weight; or None.
    """

    example: Tensor
    alpha: Tensor
    weight: Tensor
    line: Tensor | None = None
    halves: Tensor | None = None

    @property
    def lines(self) -> Tensor:
        """The line of the paths that each row lies on, (rows,) int64."""
        return self.example if self.line is None else self.line

    def part(self, chunk: slice) -> Rows:
        """Returns the rows of a chunk."""
        line = None if self.line is None else self.line[chunk]
        return Rows(self.example[chunk], self.alpha[chunk], self.weight[chunk], line)

    def __len__(self) -> int:
        return int(self.example.shape[0])


@dataclass(frozen=True)
class RowsOfRule:
    """The rows of a rule, steps outermost: row r is line `r % n_lines` at step `r // n_lines`.

    Only a chunk's rows take memory: a table of a million examples has fifty million rows.

    Attributes:
        alphas, weights: (steps,) float64.
        halves: (steps,) float64, other weights; or None.
        n_lines: of the paths; line l is that of example `l % batch`.
        batch: number of examples.
    """

    alphas: Tensor
    weights: Tensor
    halves: Tensor | None
    n_lines: int
    batch: int

    @classmethod
    def of(
        cls, rule: Rule, batch: int, device: torch.device, *, halves: ArrayLike | None = None, n_each: int = 1
    ) -> RowsOfRule:
        """Returns the rows of a rule for `n_each` lines of each example, with the mean over these."""

        def on_device(values: ArrayLike) -> Tensor:
            return torch.from_numpy(np.array(values, np.float64)).to(device)

        others = None if halves is None else on_device(halves)
        return cls(on_device(rule.nodes), on_device(rule.weights) / n_each, others, n_each * batch, batch)

    def part(self, chunk: slice) -> Rows:
        """Returns the rows of a chunk."""
        row = torch.arange(chunk.start, chunk.stop, device=self.alphas.device)
        step = row.div(self.n_lines, rounding_mode="floor")
        line = row - step * self.n_lines
        example = line if self.n_lines == self.batch else line % self.batch
        halves = None if self.halves is None else self.halves[step]
        return Rows(example, self.alphas[step], self.weights[step], line, halves)

    def __len__(self) -> int:
        return len(self.alphas) * self.n_lines


AnyRows = Rows | RowsOfRule


@dataclass
class Loop:
    """A loop over rows in chunks that fit in memory.

    Attributes:
        plan: the sizes of chunks; replaced by a plan of smaller chunks where those do not fit.
        memory: the memory that the call may take.
        save_memory: as `ForwardFunction.save_memory`, called where one row does not fit.
        row: what one row is, for messages.
        notes: the measures taken against lack of memory; added to.
        n_evaluations, n_savings: number of rows that were evaluated, and of measures that `save_memory` took.
        was_halved: whether a chunk was too large.
    """

    plan: ChunkPlan
    memory: MemoryUse
    save_memory: Callable[[], str]
    row: str
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
                raise IgfastMemoryError(_does_not_fit(self.row, self.memory, said))
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


@dataclass
class Gradients:
    """Sends rows through the model in chunks, and gives their gradients.

    Attributes:
        paths: one for each input, all of one batch size and device.
        evaluator: the attributed function.
        loop: the sizes of chunks, and what is done where a chunk does not fit in memory.
        guard: compares rows with what they are alone, and raises where they differ; None for whole steps.
        on_rows: called after each chunk with its number of rows, or None.
        chunks: number of chunks for each chunk size in rows; chunks that had to be repeated are not counted.
        not_finite: where gradients were not finite, or None.
    """

    paths: Sequence[Lines]
    evaluator: ForwardFunction
    loop: Loop
    guard: Guard | None = None
    on_rows: Callable[[float], object] | None = None
    chunks: Counter[int] = field(default_factory=Counter)
    not_finite: NotFinite | None = None

    @property
    def device(self) -> torch.device:
        """The device of the rows."""
        return self.paths[0].x.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that gradients are precise to, at least float32."""
        return ops.accumulator_dtype(self.paths[0].x.dtype)

    def of(self, rows: AnyRows) -> Iterator[tuple[slice, Rows, tuple[Tensor, ...]]]:
        """Yields each chunk, its rows, and their gradients, one tensor (rows, *features) for each path.

        Raises IgfastMemoryError if not even one row fits.
        """

        def gradients(chunk: slice) -> tuple[Rows, tuple[Tensor, ...]]:
            if self.guard is not None:  # before the peak is restarted: the guard runs the model too
                self.guard.before(chunk.stop - chunk.start, self.loop.plan.channels_last)
            if not self.chunks:
                self.loop.memory.restart_peak()  # its peak per row decides on the size of the others
            part, channels_last = rows.part(chunk), self.loop.plan.channels_last
            points = tuple(path.points(part.lines, part.alpha, channels_last) for path in self.paths)
            grads = self.evaluator.gradient(points, part.example)
            if self.guard is not None:
                self.guard.after(points, part.example)
            return part, grads

        for chunk, (part, grads) in self.loop.over(len(rows), gradients):
            yield chunk, part, grads
            del grads
            n_rows, plan = chunk.stop - chunk.start, self.loop.plan
            self.chunks[n_rows] += 1
            if plan.limits is not None and (peak := self.loop.memory.peak_of_tensors()):
                self.loop.plan = plan.fitted(peak / n_rows, self.loop.memory.for_tensors)
            if self.on_rows is not None:
                self.on_rows(n_rows)

    def summed(
        self,
        rows: AnyRows,
        sums: tuple[Tensor, ...],
        batch: int | None = None,
        apart: tuple[Tensor, ...] | None = None,
    ) -> None:
        """Adds each row's weighted gradient to the sum of its example, (batch, *features) for each path.

        The sums are not multiplied by (x - baseline).

        Args:
            rows: the path points.
            sums: to add to.
            batch: the rows of a step, if steps are outermost.
            apart: to add to with the weights in `halves`; None for nothing.

        Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 3.
        """
        finite = torch.ones(len(rows), dtype=torch.uint8, device=self.device)
        for chunk, part, grads in self.of(rows):
            self._add(sums, grads, part.example, part.weight, finite[chunk])
            if apart is not None and part.halves is not None:
                self._add(apart, grads, part.example, part.halves, finite[chunk])
            del grads  # before the next chunk
        self.keep_not_finite(finite, rows, batch)

    @staticmethod
    def _add(sums: Sequence[Tensor], grads: Sequence[Tensor], example: Tensor, weight: Tensor, finite: Tensor) -> None:
        for acc, grad in zip(sums, grads, strict=True):
            ops.accumulate_(acc, grad, example, weight, finite)

    def keep_not_finite(self, finite: Tensor, rows: AnyRows, batch: int | None) -> None:
        """Keeps where the first gradient was not finite; `finite` is (rows,) uint8, 0 for such rows."""
        if finite.is_meta or bool(finite.all()):
            return
        bad = torch.nonzero(finite == 0).flatten()
        first, n_rows = int(bad[0]), bad.numel() + (self.not_finite.n_rows if self.not_finite else 0)
        row = rows.part(slice(first, first + 1))
        found = NotFinite(int(row.example), float(row.alpha), batch and first // batch, n_rows)
        self.not_finite = found if self.not_finite is None else replace(self.not_finite, n_rows=n_rows)
