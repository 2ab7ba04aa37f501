"""Integrates each example to a tolerance of its attributions' error: in rounds, with path points where they are needed.

An example begins with a few nodes. Two sums of gradients, over even and over odd nodes, tell its error, and those of
each segment of the path where more nodes are worth most. Examples that converged make room for others, so chunks stay
full.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from igfast.errors import ArgumentError, ArgumentTypeError, ConvergenceWarning, OutputError, warn
from igfast.memory.scope import MemoryUse
from igfast.request.inputs import Inputs, describe
from igfast.run.engine import Gradients, Rows
from igfast.run.path import differences
from igfast.run.report import Convergence
from igfast.run.segments import PILOT_INTERVALS, Floats, Nodes, Segments, is_converged
from igfast.run.split_sums import Measured, Placed, SplitSums, slopes
from igfast.run.steps import Ends

_USUAL_STEPS = 50  # of an example, to plan chunks with
_SEGMENTS = (8, 4, 2, 1)
_SUMS_BYTES = 2**27  # of all sums of examples in work, unless one example with one segment takes more
_SHARE_OF_MEMORY = 8  # the sums may take one part of so many
_MOST_SLOTS = 1024
_MEASURED_BYTES = 2**22  # of attributions that are measured at once, for a few times as much memory
_CORRECTED = 0.2  # of the tolerance: a correction up to that is within the error that was asked for
_ROUNDING = 1e3  # times the dtype's epsilon: differences below are rounding
_ROUNDING_OF_OUTPUT = 16  # times the epsilon of the output's dtype


@dataclass(frozen=True)
class ToTolerance:
    """For each example as many path points as its tolerance needs.

    Attributes:
        tolerance: the relative L2 error of an example's attributions.
        max_steps: the most path points of an example.
        correct: whether the sum of the attributions is made F(input) - F(baseline).
        multiplied: whether attributions are multiplied by (x - baseline), for their norms.
    """

    tolerance: float
    max_steps: int
    correct: bool
    multiplied: bool
    in_steps = False
    multiplies_itself = False

    def __post_init__(self) -> None:
        if isinstance(self.tolerance, bool) or not isinstance(self.tolerance, (int, float, np.number)):
            raise ArgumentTypeError(f"tolerance must be a number; got a {type(self.tolerance).__name__}")
        if not 0 < self.tolerance < 1:
            raise ArgumentError(f"tolerance must be above 0 and below 1; got {self.tolerance}")
        if isinstance(self.max_steps, bool) or not isinstance(self.max_steps, (int, np.integer)):
            raise ArgumentTypeError(f"max_steps must be an integer; got a {type(self.max_steps).__name__}")
        if self.max_steps <= PILOT_INTERVALS:
            raise ArgumentError(f"max_steps must be at least {PILOT_INTERVALS + 1}; got {self.max_steps}")

    @property
    def n_steps(self) -> int:
        """The path points that chunks are planned for."""
        return min(_USUAL_STEPS, self.max_steps)

    def integrate(
        self, gradients: Gradients, inputs: Inputs, sums: tuple[Tensor, ...], ends: Ends, memory: MemoryUse
    ) -> Convergence:
        """Adds the integrated gradients of each example to `sums`, and returns how near they are.

        Warns if an example did not converge.
        """
        if any(x.is_complex() for x in inputs.x):
            raise ArgumentError("tolerance is for real inputs; got complex ones. Pass n_steps instead")
        changes = [_Change.of(*at_ends, inputs.joint) for at_ends in ends()]
        sizes = _sizes(inputs, sums, memory)
        judged: list[_Judged | None] = [None] * inputs.batch
        waiting = deque(range(inputs.batch))
        try:
            with memory.for_results(sizes.n_bytes):
                work = _Work(self, inputs, sizes, len(changes), gradients.dtype)
            while waiting or work.live:
                work.fill(waiting)
                work.take(gradients)
                for found in work.judged(changes, sums):
                    judged[found.example] = found
        finally:
            memory.release(sizes.n_bytes)
        return self._convergence([found for found in judged if found is not None])

    def _convergence(self, judged: Sequence[_Judged]) -> Convergence:
        missed = [found for found in judged if not found.converged]
        if missed:
            named = ", ".join(str(found.example) for found in missed[:8]) + (", ..." if len(missed) > 8 else "")
            reached = max(found.difference for found in missed) / math.sqrt(12)
            missing = ", more than that error explains" if any(found.doubtful for found in missed) else ""
            advice = "A larger max_steps may do, or another baseline, where the output changes less abruptly"
            if math.isinf(reached):
                advice = (
                    "Gradients or outputs are not finite. At an end of the path, n_steps helps, whose rule leaves the "
                    "ends out"
                )
            warn(
                f"{len(missed)} of {len(judged)} examples did not converge to tolerance={self.tolerance:g} within "
                f"max_steps={self.max_steps} ({named}); the largest estimated error is {reached:.2g}, and the largest "
                f"residual {max(abs(found.residual) for found in missed):.2g}{missing}. {advice}",
                ConvergenceWarning,
            )
        return Convergence.of_differences(
            [found.n_nodes for found in judged],
            [found.difference for found in judged],
            residual=tuple(found.residual for found in judged),
            converged=tuple(found.converged for found in judged),
            doubtful=tuple(found.doubtful for found in judged),
            tolerance=float(self.tolerance),
        )


@dataclass(frozen=True)
class _Judged:
    """An example that is done; `difference` is D over the norm of the attributions."""

    example: int
    n_nodes: int
    difference: float
    residual: float
    converged: bool
    doubtful: bool


@dataclass(frozen=True)
class _Sizes:
    n_segments: int
    n_slots: int
    n_bytes: int


def _sizes(inputs: Inputs, sums: tuple[Tensor, ...], memory: MemoryUse) -> _Sizes:
    """Returns how many segments a path has, and how many examples are in work at a time.

    Large inputs have fewer segments, whose sums take memory, before chunks shrink: one segment has two sums, and its
    nodes are equally spaced.
    """
    each = sum(acc.nbytes // acc.shape[0] for acc in sums)  # of all targets
    allowed = _SUMS_BYTES if memory.allowed is None else min(_SUMS_BYTES, memory.allowed // _SHARE_OF_MEMORY)
    n_segments = next((n for n in _SEGMENTS if (2 * n + 1) * each <= allowed), 1)
    of_slot = (2 * n_segments + 1) * each
    n_slots = max(1, min(inputs.batch, allowed // max(of_slot, 1), _MOST_SLOTS))
    return _Sizes(n_segments, n_slots, n_slots * of_slot)


@dataclass
class _Example:
    """An example in work.

    Attributes:
        example: its index in the batch.
        segments: where its nodes are.
        nodes: the nodes to take next.
    """

    example: int
    segments: Segments
    nodes: Nodes


class _Work:
    """The examples in work, each in a slot, with the sums of each target."""

    def __init__(self, asked: ToTolerance, inputs: Inputs, sizes: _Sizes, n_targets: int, dtype: torch.dtype) -> None:
        self.asked, self.inputs, self.sizes, self.dtype = asked, inputs, sizes, dtype
        self.live: dict[int, _Example] = {}
        self.sums = [SplitSums(inputs.x, sizes.n_slots, sizes.n_segments, asked.multiplied) for _ in range(n_targets)]

    def fill(self, waiting: deque[int]) -> None:
        """Puts waiting examples into the free slots."""
        free = [slot for slot in range(self.sizes.n_slots) if slot not in self.live][: len(waiting)]
        for slot in free:
            self.live[slot] = _Example(waiting.popleft(), *Segments.pilot(self.sizes.n_segments))
        for sums in self.sums if free else ():
            sums.clear(free)

    def take(self, gradients: Gradients) -> None:
        """Sends the new nodes of all examples through the model, and adds their gradients up."""
        for sums in self.sums:
            sums.begin_round()
        rows, placed = self._rows(gradients.device)
        finite = torch.ones(len(rows), dtype=torch.uint8, device=gradients.device)
        n_inputs = len(self.inputs.x)
        for chunk, _, grads in gradients.of(rows):
            part = placed.part(chunk)
            slots, of_row = np.unique(part.slots, return_inverse=True)
            its, of_rows = self._differences(slots.tolist()), torch.from_numpy(of_row).to(gradients.device)
            for number, sums in enumerate(self.sums):
                of_target = grads[number * n_inputs : (number + 1) * n_inputs]
                sums.add(of_target, part, finite[chunk], slopes(of_target, of_rows, its))
            del grads, of_target
        gradients.keep_not_finite(finite, rows, None)

    def _rows(self, device: torch.device) -> tuple[Rows, Placed]:
        """Returns the new nodes of all examples as rows, and where each belongs."""
        todo, n_segments = list(self.live.items()), self.sizes.n_segments
        slots = np.concatenate([np.full(len(one.nodes.alpha), slot) for slot, one in todo])
        examples = np.concatenate([np.full(len(one.nodes.alpha), one.example) for _, one in todo])
        alphas, weights, segments, parity, next_parity = (
            np.concatenate([getattr(one.nodes, name) for _, one in todo])
            for name in ("alpha", "weight", "segment", "parity", "next_parity")
        )
        place = slots * n_segments + segments
        following = np.where(next_parity < 0, -1, 2 * (place + 1) + next_parity)
        example, alpha, weight, first, second = (
            torch.from_numpy(values).to(device) for values in (examples, alphas, weights, 2 * place + parity, following)
        )
        return Rows(example, alpha, weight), Placed(slots, alphas, first, second, weight)

    def _differences(self, slots: Sequence[int]) -> list[Tensor]:
        """Returns (x - baseline) of the examples in some slots, (slots, *features) for each input."""
        return differences(self.inputs, self._examples(slots))

    def _examples(self, slots: Sequence[int]) -> Tensor:
        return torch.tensor([self.live[slot].example for slot in slots], device=self.inputs.device)

    def judged(self, changes: Sequence[_Change], results: tuple[Tensor, ...]) -> list[_Judged]:
        """Measures the examples in work, writes their sums, and returns and removes those that are done."""
        done, folds = [], [list[int]() for _ in range(self.sizes.n_segments)]
        for slots in self._groups():
            for slot, verdicts in zip(slots, self._verdicts(slots, changes, results), strict=True):
                found = self._judged(self.live[slot], verdicts)
                if found is not None:
                    done.append(found)
                    del self.live[slot]
                    continue
                for segment in np.flatnonzero(self.live[slot].segments.folds).tolist():
                    folds[segment].append(slot)
        for segment, slots in enumerate(folds):
            for sums in self.sums if slots else ():
                sums.fold(segment, slots)
        return done

    def _groups(self) -> list[list[int]]:
        """Returns the slots in use, in groups that are measured at once."""
        live = list(self.live)
        size = max(1, _MEASURED_BYTES // max(1, sum(direction[0].nbytes for direction in self.sums[0].direction)))
        return [live[start : start + size] for start in range(0, len(live), size)]

    def _verdicts(
        self, slots: Sequence[int], changes: Sequence[_Change], results: tuple[Tensor, ...]
    ) -> list[tuple[_Verdict, ...]]:
        """Measures the examples in some slots, and writes their sums; returns what is made of each one's targets."""
        ones, examples, its = [self.live[slot] for slot in slots], self._examples(slots), self._differences(slots)
        h, n_inputs, of_targets = np.stack([one.segments.h for one in ones]), len(self.inputs.x), []
        for number, (sums, change) in enumerate(zip(self.sums, changes, strict=True)):
            totals, measured = sums.measured(slots, h, its)
            verdicts = [
                self._verdict(found, change.values[one.example], change.noise[one.example])
                for one, found in zip(ones, measured, strict=True)
            ]
            sums.correct(totals, slots, [verdict.step for verdict in verdicts])
            for acc, total in zip(results[number * n_inputs : (number + 1) * n_inputs], totals, strict=True):
                acc.index_copy_(0, examples, total)
            of_targets.append(verdicts)
        return list(zip(*of_targets, strict=True))

    def _judged(self, one: _Example, verdicts: Sequence[_Verdict]) -> _Judged | None:
        """Returns an example that is done; otherwise None, after its next nodes were placed."""
        worst = max(verdicts, key=lambda verdict: verdict.difference)
        converged = all(verdict.converged for verdict in verdicts)
        doubtful = any(verdict.is_doubtful for verdict in verdicts)
        if not converged and all(math.isfinite(verdict.norm + verdict.residual) for verdict in verdicts):
            by_segment = np.max([verdict.by_segment for verdict in verdicts], axis=0)
            allowed = 0.0 if doubtful else self.asked.tolerance
            nodes = one.segments.refined(by_segment, worst.difference, allowed, self.asked.max_steps)
            if nodes is not None:
                one.nodes = nodes
                return None
        residual = max((verdict.residual for verdict in verdicts), key=abs)
        return _Judged(one.example, one.segments.n_nodes, worst.difference, residual, converged, doubtful)

    def _verdict(self, found: Measured, change: float, noise: float) -> _Verdict:
        """Returns whether a target's integral is near enough, and how its completeness is corrected."""
        residual = change - found.along
        is_finite = math.isfinite(found.norm + residual + found.slope)
        rounding = _ROUNDING * torch.finfo(self.dtype).eps * found.norm
        step = residual / found.slope if is_finite and found.slope > 0 else 0.0  # 0: no gradient changes on the path
        most = max(found.total / 2, rounding, _CORRECTED * self.asked.tolerance * found.norm)
        is_small = is_finite and found.slope > 0 and abs(step) * found.size <= most
        is_doubtful = is_finite and not is_small and abs(residual) > noise + rounding
        near = is_finite and is_converged(found.total, found.norm, self.asked.tolerance)
        without = 0.0 if found.norm == 0 and is_finite and not is_doubtful else math.inf
        has_norm = is_finite and found.norm > 0
        return _Verdict(
            difference=found.total / found.norm if has_norm else without,
            by_segment=found.by_segment / found.norm if has_norm else found.by_segment,
            norm=found.norm,
            residual=residual,
            step=step if self.asked.correct and is_small else 0.0,
            is_doubtful=is_doubtful,
            converged=near and not is_doubtful,
        )


@dataclass(frozen=True)
class _Change:
    """The change of F along each example's path, and how much of it rounding may be.

    Attributes:
        values: F where the paths end, less F where they begin, (batch,).
        noise: (batch,).
    """

    values: list[float]
    noise: list[float]

    @classmethod
    def of(cls, at_end: Tensor, at_start: Tensor, joint: bool) -> _Change:
        """Returns the change between values of F; of a joint example, of their sums; raises OutputError."""
        if not at_end.is_floating_point():
            raise OutputError(f"forward_func must return floating numbers to have a gradient; got {describe(at_end)}")
        change = at_end.double() - at_start.double()
        largest = torch.maximum(at_end.abs(), at_start.abs()).double()
        if joint:
            change, largest = change.sum().reshape(1), largest.sum().reshape(1)
        return cls(change.tolist(), (_ROUNDING_OF_OUTPUT * torch.finfo(at_end.dtype).eps * largest).tolist())


@dataclass(frozen=True)
class _Verdict:
    """What is made of one target of an example.

    Attributes:
        difference, by_segment: D of the path and of each segment, over the norm of the attributions.
        norm: of the attributions.
        residual: F(input) - F(baseline) less the sum of the attributions.
        step: how far the attributions are moved in the direction of the correction.
        is_doubtful: whether the correction is larger than the difference tells: something was missed.
        converged: whether the error is within the tolerance.
    """

    difference: float
    by_segment: Floats
    norm: float
    residual: float
    step: float
    is_doubtful: bool
    converged: bool
