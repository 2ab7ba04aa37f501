"""Compares rows that are stacked or split with what they are in a step of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from igfast import ops
from igfast.errors import IgfastError
from igfast.interrupts import must_pass
from igfast.memory.recovery import is_out_of_memory
from igfast.model.forward import ForwardFunction
from igfast.model.independence import RowsDependError, are_apart, distance, rounding, worth_a_closer_look
from igfast.rng import random_state

_SAME_KERNELS = 1e-2  # of the rounding that is allowed between kernels: between two calls that are alike
STACKED, SPLIT, MIXED, LAYOUT = "stacked", "split", "mixed", "channels-last"
"""Ways in which a chunk differs from a step of the caller's: several steps, a part of the examples, rows of any
examples at any alphas, or another layout."""
_DEPENDS = "the output of forward_func for one example depends on the others in its batch"
_CHANGES = (
    "the output of forward_func changes from call to call (dropout, or a state that it keeps; call eval() on the model "
    "unless training mode is meant)"
)


@dataclass
class Guard:
    """Ensures that rows are stacked or split only where that leaves the outputs as they are.

    Each way is checked once, with the first chunk of its kind. Layouts were compared before (`discover`). Gradients in
    another layout are a way of their own only because a model may refuse that.

    Attributes:
        evaluator: the model; its inputs are not one joint example.
        own_call: the caller's own call: steps are of its examples, of which the evaluator's may be noisy copies.
        in_steps: whether chunks have the examples in the caller's order, step after step.
        agrees: the ways that were checked.
        pending: the ways of the present chunk that are not checked yet.
        unchecked: the ways for which there was no memory to compare.
        blind: the ways whose comparison told nothing, as all rows had the same outputs; not for later calls.
    """

    evaluator: ForwardFunction
    own_call: ForwardFunction
    in_steps: bool
    agrees: set[str]
    pending: set[str] = field(default_factory=set)
    unchecked: set[str] = field(default_factory=set)
    blind: set[str] = field(default_factory=set)

    def before(self, n_rows: int, channels_last: bool) -> None:
        """Checks, before a chunk, that a part of the examples keeps its outputs; raises RowsDependError otherwise."""
        batch = self.own_call.inputs.batch
        ways = {STACKED} if n_rows > batch else {SPLIT} if n_rows < batch else set()
        if not self.in_steps:
            ways = {MIXED} if max(n_rows, batch) > 1 else set()
        elif n_rows == self.evaluator.inputs.batch:  # all copies at once, as Captum has them
            ways = set()
        self.pending = (ways | ({LAYOUT} if channels_last else set())) - self.agrees
        if SPLIT in self.pending:
            self._check_split(n_rows)
            self._found({SPLIT})
        self.evaluator.is_compared = bool({STACKED, MIXED} & self.pending)

    def after(self, points: tuple[Tensor, ...], example: Tensor) -> None:
        """Checks, after a chunk, that a step alone has its outputs in the chunk; raises RowsDependError otherwise."""
        if STACKED in self.pending:
            self._check_step(points)
        if MIXED in self.pending:
            self._check_row(points, example)
        self._found(self.pending.copy())
        self.evaluator.is_compared, self.evaluator.compared_output = False, None

    def _found(self, ways: set[str]) -> None:
        self.agrees |= ways
        self.pending -= ways

    def _check_split(self, n_rows: int) -> None:
        """Compares the first and the last examples: a row may depend on those before it alone, or after it."""
        evaluator = self.own_call
        x, example = self._unlike_examples(), evaluator.all_examples()

        def among_others(part: slice) -> Tensor:  # in a batch of the same size, with one of them for the others
            index = torch.full_like(example, part.start)
            index[part] = example[part]
            found = evaluator.comparable(evaluator.output(tuple(p.index_select(0, index) for p in x), index))
            self._check_alike(found, index == part.start, x)
            return found[part]

        before = random_state(evaluator.inputs.device)
        together = _unless_out_of_memory(lambda: evaluator.comparable(evaluator.output(x, example)))
        if together is None and n_rows > 1:  # as many as fit are compared with their halves
            x, example, n_rows = tuple(p[:n_rows] for p in x), example[:n_rows], n_rows // 2
            together = _unless_out_of_memory(lambda: evaluator.comparable(evaluator.output(x, example)))
        if together is None:
            before.restore()
            self.unchecked.add(SPLIT)
            return
        self._ask_what_is_told(SPLIT, together)
        try:
            # Apart from each other: what two parts share, such as the largest value, would leave both as they are.
            for part in (slice(0, n_rows), slice(max(n_rows, len(example) - n_rows), len(example))):
                apart = evaluator.comparable(evaluator.output(tuple(p[part] for p in x), example[part]))
                if not _same(together[part], apart, partial(among_others, part), x, together):
                    again = evaluator.comparable(evaluator.output(x, example))
                    steady = distance(again, together, together) <= rounding((together, *x))
                    raise RowsDependError(_DEPENDS if steady else _CHANGES)
        except Exception as error:
            if isinstance(error, (IgfastError, RowsDependError, Warning)) or must_pass(error):
                raise
            raise RowsDependError(f"forward_func does not take {n_rows} of the examples alone") from error
        finally:
            before.restore()

    def _unlike_examples(self) -> tuple[Tensor, ...]:
        """Returns the caller's examples, each moved to another place on its path: alike examples would tell nothing."""
        inputs = self.own_call.inputs
        example = torch.arange(inputs.batch, device=inputs.device)
        alpha = 1 - example.double() / (2 * inputs.batch)
        return tuple(ops.interpolate(x, b, example, alpha) for x, b in zip(inputs.x, inputs.baselines, strict=True))

    def _ask_what_is_told(self, way: str, outputs: Tensor) -> None:
        if not are_apart(outputs):
            self.blind.add(way)

    @staticmethod
    def _check_alike(output: Tensor, are_copies: Tensor, inputs: tuple[Tensor, ...]) -> None:
        """Raises RowsDependError if copies of one row have different outputs in one batch: a place in it matters."""
        copies = output[are_copies.to(output.device)]
        if distance(copies, copies[:1].expand_as(copies), output) > rounding((output, *inputs)):
            raise RowsDependError(_DEPENDS)

    def _check_row(self, points: tuple[Tensor, ...], examples: Tensor) -> None:
        """Compares rows with the outputs that their examples have in the caller's own batch."""
        if points[0].shape[0] == 1:
            self._check_own_batch()
        for number, row in enumerate(_compared(points[0].shape[0])):
            self._check_one_row(row, points, examples, twice=number == 0)

    def _check_own_batch(self) -> None:
        """Compares examples with what they are among copies of themselves: a row alone tells nothing of others."""
        evaluator, x = self.own_call, self._unlike_examples()
        example, before = evaluator.all_examples(), random_state(self.own_call.inputs.device)
        try:
            together = evaluator.comparable(evaluator.output(x, example))
            self._ask_what_is_told(MIXED, together)
            for place in {0, len(example) - 1}:
                index = torch.full_like(example, place)
                copies = evaluator.comparable(evaluator.output(tuple(p.index_select(0, index) for p in x), index))
                one = slice(place, place + 1)
                if distance(copies[one], together[one], together) > rounding((together, *x)):
                    raise RowsDependError(_DEPENDS)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.unchecked.add(MIXED)
        finally:
            before.restore()

    def _check_one_row(self, row: int, points: tuple[Tensor, ...], examples: Tensor, twice: bool) -> None:
        evaluator = self.evaluator
        n_rows, place = points[0].shape[0], int(examples[row])

        def in_own_batch(evaluate: Callable[..., Any]) -> Tensor:
            batch = tuple(x.clone() for x in evaluator.inputs.x)
            for x, point in zip(batch, points, strict=True):
                x[place] = point[row]
            return evaluator.comparable(evaluate(batch, evaluator.all_examples()))[place : place + 1]

        def among_others() -> Tensor:  # the row repeated, in a chunk of the same size
            index = torch.full((n_rows,), row, device=examples.device)
            repeated = tuple(torch.empty_like(point).copy_(point.index_select(0, index)) for point in points)
            found = evaluator.comparable(evaluator.output_with_graph(repeated, examples[index]))
            self._check_alike(found, index == row, points)
            return found[row : row + 1]

        self._compare(slice(row, row + 1), in_own_batch, among_others, points, MIXED, twice)

    def _check_step(self, points: tuple[Tensor, ...]) -> None:
        n_each = min(points[0].shape[0], self.own_call.inputs.batch)
        for number, step in enumerate(_compared(points[0].shape[0] // n_each)):
            self._check_one_step(slice(step * n_each, (step + 1) * n_each), points, twice=number == 0)

    def _check_one_step(self, step: slice, points: tuple[Tensor, ...], twice: bool) -> None:
        evaluator = self.own_call
        n_rows, n_each = points[0].shape[0], step.stop - step.start
        example = evaluator.all_examples()[:n_each]

        def alone(evaluate: Callable[..., Any]) -> Tensor:
            return evaluator.comparable(evaluate(tuple(point[step].clone() for point in points), example))

        def among_others() -> Tensor:  # the step repeated, in a chunk of the same size
            index = torch.arange(n_rows, device=example.device) % n_each
            repeated = tuple(torch.empty_like(point).copy_(point[step].index_select(0, index)) for point in points)
            found = evaluator.comparable(evaluator.output_with_graph(repeated, example[index]))
            self._check_alike(found, index == 0, points)
            return found[step]

        self._compare(step, alone, among_others, points, STACKED, twice)

    def _compare(
        self,
        rows: slice,
        alone: Callable[..., Tensor],
        among_others: Callable[[], Tensor],
        points: tuple[Tensor, ...],
        way: str,
        twice: bool,
    ) -> None:
        """Raises RowsDependError if rows of the kept output are not what they are alone; or, `twice`, change there."""
        evaluator, kept = self.own_call, self.evaluator.compared_output
        before = random_state(evaluator.inputs.device)
        self._ask_what_is_told(way, kept)
        try:
            wanted = alone(evaluator.output)
            allowed = rounding((wanted, *points))
            # The same kernels on the same numbers: on a CPU, a state that fades away shows below what rounding may be.
            steady = allowed * (_SAME_KERNELS if wanted.device.type == "cpu" else 1)
            if twice and distance(alone(evaluator.output), wanted) > steady:
                raise RowsDependError(_CHANGES)
            if distance(kept[rows], wanted, kept) <= allowed:
                return
            if not _same(kept[rows], alone(evaluator.output_with_graph), among_others, points, kept):
                raise RowsDependError(_DEPENDS)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.unchecked.add(way)
        finally:
            before.restore()


def _unless_out_of_memory(evaluate: Callable[[], Tensor]) -> Tensor | None:
    """Returns what a function returns; None if it runs out of memory."""
    try:
        return evaluate()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None


def _compared(count: int) -> list[int]:
    """Returns which of a chunk's steps or rows are compared with what they are alone.

    One has others before it and after it, as each may depend on either. It is neither the last nor in the middle, where
    a largest value, or a mean, that the chunk shares may leave it unchanged. Of three or fewer, the first and the last.
    """
    third = (count - 1) // 3
    return [third] if third else [0, count - 1][: min(count, 2)]


def _same(
    output: Any, alone: Any, among_others: Callable[[], Any], inputs: tuple[Tensor, ...], reference: Tensor
) -> bool:
    """Returns whether rows have the outputs of a step of their own, up to rounding.

    Kernels for another number of rows may round differently. Close but unequal outputs are therefore compared again,
    among other rows in a batch of the same size. The kernels are then the same, and a difference shows dependence.
    """
    allowed = rounding((alone, output, *inputs))
    apart = distance(output, alone, reference)
    if apart <= allowed:
        return True
    return (
        apart <= worth_a_closer_look(allowed, reference.device)
        and distance(among_others(), output, reference) <= allowed
    )
