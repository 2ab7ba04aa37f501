"""The only loop: rows of the path through the model, chunk by chunk, their weighted gradients into one accumulator."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from igfast import ops
from igfast.errors import IgfastMemoryError, LeanError, warn
from igfast.memory import MemoryUse, free_memory, is_out_of_memory, wait_for
from igfast.path import CHANNELS_LAST, Path, may_be_channels_last
from igfast.planner import ChunkPlan
from igfast.quadrature import Rule
from igfast.replay import FEWEST_LEFT, Replay, Result


class Evaluator(Protocol):
    """What the engine asks of a model: gradients and values at path points."""

    def gradient(
        self, make_points: Callable[[], tuple[Tensor, ...]], example: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Gradients, shaped as the path points, and values, (rows,), or None where they are not known."""

    def value(self, points: tuple[Tensor, ...], example: Tensor) -> Tensor:
        """Values, (rows,), forward only."""

    def save_memory(self) -> str:
        """Takes one more measure that saves memory and costs time; returns which, or "" if none is left."""


_Result = TypeVar("_Result")
_CORNER = 96  # cells of each side: enough for networks that halve their input five times


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
        at_input: F(x), (batch,), or None if it was not asked for.
        at_baseline: F(baseline), (batch,), or None if it was not asked for.
        not_finite: where gradients were not finite, or None.
        chunks: how many chunks there were of each number of rows; those that had to be repeated are not counted.
        n_evaluations: rows that went forward and backward, repeated ones included.
        notes: what had to be done against lack of memory.
    """

    sums: tuple[Tensor, ...]
    at_input: Tensor | None
    at_baseline: Tensor | None
    not_finite: NotFinite | None
    chunks: Counter[int] = field(default_factory=Counter)
    n_evaluations: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Rows:
    """All rows of a rule, steps outermost: row r is example `r % batch` at step `r // batch`."""

    nodes: list[float]
    batch: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.nodes) * self.batch

    def example(self) -> Tensor:
        """The example of each row, (rows,) int64."""
        return torch.from_numpy(np.tile(np.arange(self.batch, dtype=np.int64), len(self.nodes))).to(self.device)

    def per_row(self, per_step: ArrayLike) -> Tensor:
        """A number of each step as one of each row, (rows,) float64."""
        return torch.from_numpy(np.repeat(np.asarray(per_step, np.float64), self.batch)).to(self.device)


@dataclass(frozen=True)
class _Ends:
    """F(baseline) and F(x) of each example, filled in from whatever rows have alpha 0 or 1."""

    batch: int
    values: dict[float, Tensor] = field(default_factory=dict)

    def record(self, rows: _Rows, chunk: slice, values: Tensor) -> None:
        """Takes the values of a chunk's rows that lie at an end."""
        for step in range(chunk.start // self.batch, -(-chunk.stop // self.batch)):
            end = rows.nodes[step]
            if end not in (0.0, 1.0):
                continue
            first = step * self.batch
            here = slice(max(chunk.start, first), min(chunk.stop, first + self.batch))
            stored = self.values.setdefault(end, values.new_zeros(self.batch))
            stored[here.start - first : here.stop - first] = values[here.start - chunk.start : here.stop - chunk.start]


@dataclass
class _Loop:
    """What a loop over chunks has at hand, and what it did.

    Attributes:
        paths, evaluator, plan, memory, replay: as `integrate` takes them.
        chunks: how many chunks there were of each size.
        n_evaluations: rows that went forward and backward.
        notes: what had to be done against lack of memory.
    """

    paths: Sequence[Path]
    evaluator: Evaluator
    plan: ChunkPlan
    memory: MemoryUse
    replay: Replay = field(default_factory=Replay)
    chunks: Counter[int] = field(default_factory=Counter)
    n_evaluations: int = 0
    notes: list[str] = field(default_factory=list)

    def over(self, rows: _Rows, evaluate: Callable[[slice], _Result]) -> Iterator[tuple[slice, _Result, float]]:
        """Evaluates all rows, a chunk at a time; one that does not fit in memory again, with less of it."""
        start = 0
        while start < len(rows):
            chunk = slice(start, start + self.plan.next_rows(len(rows) - start))
            n_rows = chunk.stop - start
            began = time.perf_counter()
            random_state = torch.get_rng_state()
            said: str | None = None
            try:
                result = evaluate(chunk)
            except Exception as error:  # a model or a library may raise anything when memory runs out
                if not is_out_of_memory(error):
                    raise
                said = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
            if said is not None:  # out of the handler, whose traceback holds what the failed chunk held
                torch.set_rng_state(random_state)
                self._save_memory(n_rows, said)
                continue
            start = chunk.stop
            yield chunk, result, began
            del result

    def _save_memory(self, n_rows: int, said: str) -> None:
        free_memory(self.memory.device)
        if self.plan.shrink(n_rows):
            done = f"chunks of {self.plan.size} instead of {n_rows} rows"
            if self.plan.size == n_rows:
                done = "the layout of the chunks before"
        else:
            done = self.evaluator.save_memory()
            self.plan.savings += 1
            if not done:
                raise IgfastMemoryError(_does_not_fit(self.paths, self.memory, said))
        self.notes.append(done)
        warn(f"out of memory, so the attribution goes on with {done} ({said})")


def integrate(
    paths: Sequence[Path],
    rule: Rule,
    evaluator: Evaluator,
    plan: ChunkPlan,
    memory: MemoryUse,
    *,
    with_ends: bool,
    on_rows: Callable[[float], object] | None = None,
    replay: Replay | None = None,
) -> Integral:
    """Integrates the gradient along straight lines.

    Rows run through the steps, and through the examples within a step. Nothing the size of all rows is ever held but
    three numbers for each.

    Args:
        paths: one for each input, all of one batch size and device.
        rule: nodes and weights.
        evaluator: the model.
        plan: how many rows a chunk has.
        memory: what may be taken.
        with_ends: also find F at both ends; forward-only, and reused where the rule has those points.
        on_rows: called after each chunk with the number of its rows; None for nothing.
        replay: evaluates chunks, by CUDA graphs where it can; None for none.

    Returns:
        The weighted sums of gradients, not yet multiplied by x - baseline.

    Raises:
        IgfastMemoryError: not even one row fits.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 3.
    """
    for _ in range(plan.savings):  # that earlier calls of this kind had to take
        evaluator.save_memory()
    rows = _Rows(rule.nodes.tolist(), plan.batch, paths[0].x.device)
    example, alpha, weight = rows.example(), rows.per_row(rule.nodes), rows.per_row(rule.weights)
    finite = torch.ones(len(rows), dtype=torch.uint8, device=rows.device)
    sums = tuple(path.zeros() for path in paths)
    ends, loop = _Ends(plan.batch), _Loop(paths, evaluator, plan, memory, replay or Replay())
    for chunk, (grads, values), began in loop.over(rows, lambda c: _evaluate(loop, rows, example, alpha, c)):
        for acc, grad in zip(sums, grads, strict=True):
            ops.accumulate_(acc, grad, example[chunk], weight[chunk], finite[chunk])
        if with_ends and values is not None:
            ends.record(rows, chunk, values)
        del grads, grad, values
        loop.chunks[chunk.stop - chunk.start] += 1
        rows_left, seconds = len(rows) - chunk.stop, None
        if plan.is_timing(rows_left):
            wait_for(rows.device)
            seconds = time.perf_counter() - began
        plan.record(chunk.stop - chunk.start, seconds, rows_left)
        if not plan.is_settled and (peak := memory.peak_of_tensors()):
            plan.limit_memory(peak / max(loop.chunks), memory.for_tensors)
        if on_rows is not None:
            on_rows(chunk.stop - chunk.start)
    if with_ends:
        _evaluate_ends(loop, ends)
    not_finite = _first_not_finite(finite, plan.batch)
    at_input, at_baseline = ends.values.get(1.0), ends.values.get(0.0)
    return Integral(sums, at_input, at_baseline, not_finite, loop.chunks, loop.n_evaluations, tuple(loop.notes))


def _does_not_fit(paths: Sequence[Path], memory: MemoryUse, said: str) -> str:
    taken = memory.peak()
    needs = "" if taken is None else f", and needs more than the {taken / 2**20:.0f} MiB that it took before it failed"
    allowed = "" if memory.allowed is None else f" of {memory.allowed / 2**20:.0f} MiB"
    shapes = ", ".join(str((1, *path.x.shape[1:])) for path in paths)
    return (
        f"one path point, {shapes}, does not fit in the memory{allowed} that is allowed on {memory.device}{needs} "
        f"({said}). A larger memory_budget, a smaller input, a model and input in bfloat16, or a device with more "
        "memory would help"
    )


def _evaluate(loop: _Loop, rows: _Rows, example: Tensor, alpha: Tensor, chunk: slice) -> Result:
    """Gradients and values of one chunk, by a graph where there is one."""
    paths, evaluator, plan = loop.paths, loop.evaluator, loop.plan
    of_chunk = example[chunk], alpha[chunk]
    n_rows, rows_left, channels_last = chunk.stop - chunk.start, len(rows) - chunk.stop, plan.channels_last

    def recorded(example: Tensor, alpha: Tensor) -> Result:
        """Of rows that will change, at points in memory of the graph's own."""
        return evaluator.gradient(lambda: tuple(path.points(example, alpha, channels_last) for path in paths), example)

    may_record = loop.replay.recorder is not None and not plan.is_timing(rows_left) and plan.savings == 0
    n_replayed = loop.replay.n_replayed
    result = loop.replay(
        (n_rows, channels_last),
        of_chunk,
        lambda: _gradient(loop, *of_chunk),
        recorded,
        plan.n_alike(n_rows, rows_left, FEWEST_LEFT) if may_record else 0,
    )
    loop.n_evaluations += n_rows if loop.replay.n_replayed > n_replayed else 0
    return result


def _gradient(loop: _Loop, example: Tensor, alpha: Tensor) -> Result:
    """Gradients and values of one chunk, in the caller's layout if the model does not take the plan's."""
    paths, evaluator, plan = loop.paths, loop.evaluator, loop.plan

    def gradient(channels_last: bool) -> Result:
        """Of this chunk's rows."""
        loop.n_evaluations += example.shape[0]
        return evaluator.gradient(lambda: tuple(path.points(example, alpha, channels_last) for path in paths), example)

    if plan.channels_last and not plan.layout_verified:
        if not _takes_channels_last(paths, evaluator):
            plan.reject_layout()
        plan.layout_verified = True
    try:
        return gradient(plan.channels_last)
    except Exception as error:  # a model may check its input and raise anything
        if isinstance(error, LeanError) or is_out_of_memory(error) or not plan.reject_layout():
            raise
    return gradient(False)


def _takes_channels_last(paths: Sequence[Path], evaluator: Evaluator) -> bool:
    """Whether the first example has the same value in both layouts, up to rounding.

    A model that reads memory by strides of its own would silently see other pixels. One that draws random numbers, or
    that fails without a gradient, or does not fit in memory in the caller's layout, fails this too and merely keeps it.
    Where a corner of the example says it, that is enough: a large one in the caller's layout would set the peak of the
    whole call.
    """
    examples = tuple(path.x[:1] for path in paths)
    corner = _corner(examples)
    is_flat = all(float(x.min()) == float(x.max()) for x in corner if x.numel() and not x.is_complex())  # says nothing
    random_state = torch.get_rng_state()
    try:
        for crop in (examples,) if is_flat else (corner, examples):
            try:
                values, wanted = (_value_in(crop, evaluator, channels_last) for channels_last in (True, False))
            except Exception:  # a model may take images of one size only
                continue
            rounding = min(1e4 * torch.finfo(values.dtype).eps, 2e-2)
            return torch.allclose(values, wanted, rtol=rounding, atol=0, equal_nan=True)
        return False
    finally:
        torch.set_rng_state(random_state)


def _corner(examples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    corner = (slice(None), slice(None), *[slice(_CORNER)] * 3)
    return tuple(x[corner[: x.dim()]] if x.dim() in CHANNELS_LAST else x for x in examples)


def _value_in(examples: tuple[Tensor, ...], evaluator: Evaluator, channels_last: bool) -> Tensor:
    copies = tuple(
        x.clone(
            memory_format=CHANNELS_LAST[x.dim()]
            if channels_last and may_be_channels_last(x)
            else torch.contiguous_format
        )
        for x in examples
    )
    return evaluator.value(copies, torch.zeros(1, dtype=torch.int64, device=examples[0].device))


def _evaluate_ends(loop: _Loop, ends: _Ends) -> None:
    """Forward passes for the ends that the rule did not visit."""
    rows = _Rows([end for end in (1.0, 0.0) if end not in ends.values], loop.plan.batch, loop.paths[0].x.device)
    example, alpha = rows.example(), rows.per_row(rows.nodes)

    def value(chunk: slice) -> Tensor:
        """Of a chunk's rows."""
        points = tuple(path.points(example[chunk], alpha[chunk], loop.plan.channels_last) for path in loop.paths)
        return loop.evaluator.value(points, example[chunk])

    for chunk, values, _ in loop.over(rows, value):
        ends.record(rows, chunk, values)


def _first_not_finite(finite: Tensor, batch: int) -> NotFinite | None:
    if finite.is_meta or bool(finite.all()):
        return None
    bad = torch.nonzero(finite == 0).flatten()
    step, example = divmod(int(bad[0]), batch)
    return NotFinite(example, step, bad.numel())
