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
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from igfast import ops
from igfast.errors import ArgumentError, ArgumentTypeError, ConvergenceWarning, warn
from igfast.memory.scope import MemoryUse
from igfast.request.inputs import Inputs
from igfast.run.engine import Gradients, NotFinite, Rows
from igfast.run.report import Convergence
from igfast.run.segments import PILOT_INTERVALS, Floats, Integers, Nodes, Segments, is_converged
from igfast.run.steps import Ends

_USUAL_STEPS = 50  # of an example, to plan chunks with
_SEGMENTS = (8, 4, 2, 1)
_SUMS_BYTES = 2**27  # of all sums of examples in work, unless one example with one segment takes more
_SHARE_OF_MEMORY = 8  # the sums may take one part of so many
_ROUNDING = 1e3  # times the dtype's epsilon: differences below are rounding


@dataclass(frozen=True)
class ToTolerance:
    """For each example as many path points as its tolerance needs.

    Attributes:
        tolerance: the relative L2 error of an example's attributions.
        max_steps: the most path points of an example.
        correct: whether the sum of the attributions is made F(input) - F(baseline).
        scaled: whether attributions are multiplied by (x - baseline), for their norms.
    """

    tolerance: float
    max_steps: int
    correct: bool
    scaled: bool
    in_steps = False

    def __post_init__(self) -> None:
        if isinstance(self.tolerance, bool) or not isinstance(self.tolerance, (int, float)):
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

    def place_of(self, not_finite: NotFinite) -> str:
        """Returns the alpha."""
        return f"alpha {not_finite.alpha:.4g}"

    def integrate(
        self, gradients: Gradients, inputs: Inputs, sums: tuple[Tensor, ...], ends: Ends, memory: MemoryUse
    ) -> Convergence:
        """Adds the integrated gradients of each example to `sums`, and returns how near they are.

        Warns if an example did not converge.
        """
        if any(x.is_complex() for x in inputs.x):
            raise ArgumentError("tolerance is for real inputs; got complex ones. Pass n_steps instead")
        at_input, at_baseline = (end.double() for end in ends())
        per_entry = at_input - at_baseline
        changes = (per_entry.sum().reshape(1) if inputs.joint else per_entry).tolist()
        sizes = _sizes(inputs, sums, memory)
        with memory.for_results(sizes.n_bytes):
            work = _Work(self, inputs, sizes)
        judged: list[_Judged | None] = [None] * inputs.batch
        waiting = deque(range(inputs.batch))
        while waiting or work.live:
            work.fill(waiting)
            work.take(gradients)
            for found in work.judged(changes, sums):
                judged[found.example] = found
        return self._convergence([found for found in judged if found is not None])

    def _convergence(self, judged: Sequence[_Judged]) -> Convergence:
        missed = [found for found in judged if not found.converged]
        if missed:
            named = ", ".join(str(found.example) for found in missed[:8]) + (", ..." if len(missed) > 8 else "")
            reached = max(found.difference for found in missed) / math.sqrt(12)
            warn(
                f"{len(missed)} of {len(judged)} examples did not converge to tolerance={self.tolerance:g} within "
                f"max_steps={self.max_steps} ({named}); the largest estimated error is {reached:.2g}. A larger "
                "max_steps may do, or another baseline, where the output changes less abruptly",
                ConvergenceWarning,
            )
        return Convergence(
            evaluations=tuple(found.n_nodes for found in judged),
            estimate=tuple(found.difference / math.sqrt(12) for found in judged),
            bound=tuple(found.difference / 2 for found in judged),
            residual=tuple(found.residual for found in judged),
            converged=tuple(found.converged for found in judged),
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
    each = sum(acc.nbytes // acc.shape[0] for acc in sums)
    allowed = _SUMS_BYTES if memory.allowed is None else min(_SUMS_BYTES, memory.allowed // _SHARE_OF_MEMORY)
    n_segments = next((n for n in _SEGMENTS if (2 * n + 1) * each <= allowed), 1)
    of_slot = (2 * n_segments + 1) * each
    n_slots = max(1, min(inputs.batch, allowed // max(of_slot, 1)))
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
    """The examples in work, each in a slot with its sums of gradients.

    For each input, `halves` has the sums of even and odd nodes, (slots, segments, 2, *features), and `direction`,
    (slots, *features), the direction in which completeness is corrected: the sum over neighbouring new nodes of
    h^2 (s_2 - s_1) (g_2 - g_1), with s the derivative along the path.
    """

    def __init__(self, asked: ToTolerance, inputs: Inputs, sizes: _Sizes) -> None:
        self.asked, self.inputs, self.sizes = asked, inputs, sizes
        self.live: dict[int, _Example] = {}
        dtypes = [ops.accumulator_dtype(x.dtype) for x in inputs.x]
        shapes = [x.shape[1:] for x in inputs.x]
        device, slots = inputs.device, sizes.n_slots
        self.halves = [
            torch.zeros(slots, sizes.n_segments, 2, *shape, dtype=dtype, device=device)
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        self.direction = [
            torch.zeros(slots, *shape, dtype=dtype, device=device) for shape, dtype in zip(shapes, dtypes, strict=True)
        ]

    def fill(self, waiting: deque[int]) -> None:
        """Puts waiting examples into the free slots."""
        for slot in range(self.sizes.n_slots):
            if slot not in self.live and waiting:
                self.live[slot] = _Example(waiting.popleft(), *Segments.pilot(self.sizes.n_segments))
                for halves in self.halves:
                    halves[slot].zero_()

    def take(self, gradients: Gradients) -> None:
        """Sends the new nodes of all examples through the model, and adds their gradients up."""
        for direction in self.direction:
            direction.zero_()
        rows, slots, alphas, place, following = self._rows(gradients.device)
        finite = torch.ones(len(rows), dtype=torch.uint8, device=gradients.device)
        last = _Last()
        for chunk, grads in gradients.of(rows):
            shared = torch.nonzero(following[chunk] >= 0).flatten()
            for halves, grad in zip(self.halves, grads, strict=True):
                acc = halves.flatten(0, 2)
                ops.accumulate_(acc, grad, place[chunk], rows.weight[chunk], finite[chunk])
                if len(shared):
                    ops.accumulate_(
                        acc, grad.index_select(0, shared), following[chunk][shared], rows.weight[chunk][shared]
                    )
            self._add_direction(grads, slots[chunk], alphas[chunk], last)
            del grads, grad
        gradients.look_at(finite, rows, None)

    def _rows(self, device: torch.device) -> tuple[Rows, Integers, Floats, Tensor, Tensor]:
        """Returns the new nodes as rows, the slot and alpha of each, and its two places in `halves` (-1 for none)."""
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
        return Rows(example, alpha, weight), slots, alphas, first, second

    def _add_direction(self, grads: tuple[Tensor, ...], slots: Integers, alphas: Floats, last: _Last) -> None:
        """Adds a chunk's part of the direction of the correction; `last` is the row before the chunk."""
        slopes = self._slopes(grads, slots)
        weights = np.zeros(len(slots))
        same = slots[1:] == slots[:-1]
        steps = np.where(same, np.diff(alphas) ** 2 * np.diff(slopes), 0.0)
        weights[1:] += steps
        weights[:-1] -= steps
        if last.slot == slots[0]:
            step = (alphas[0] - last.alpha) ** 2 * (slopes[0] - last.slope)
            weights[0] += step
            self._add(last.grads, np.array([last.slot]), np.array([-step]))
        self._add(grads, slots, weights)
        last.slot, last.alpha, last.slope = int(slots[-1]), float(alphas[-1]), float(slopes[-1])
        last.grads = tuple(grad[-1:].clone() for grad in grads)

    def _add(self, grads: tuple[Tensor, ...], slots: Integers, weights: Floats) -> None:
        device = grads[0].device
        place, weight = torch.from_numpy(slots).to(device), torch.from_numpy(weights).to(device)
        for direction, grad in zip(self.direction, grads, strict=True):
            ops.accumulate_(direction, grad, place, weight)

    def _slopes(self, grads: tuple[Tensor, ...], slots: Integers) -> Floats:
        """Returns each row's derivative along the path: the product of its gradient and (x - baseline)."""
        cuts = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(slots)]
        parts = []
        for start, stop in pairwise(cuts):
            differences = self._differences(int(slots[start]))
            products = [
                grad[start:stop].flatten(1).to(difference.dtype) @ difference.flatten()
                for grad, difference in zip(grads, differences, strict=True)
            ]
            parts.append(torch.stack(products).sum(dim=0, dtype=torch.float64))
        slopes: Floats = torch.cat(parts).cpu().numpy()
        return slopes

    def _differences(self, slot: int) -> list[Tensor]:
        """Returns (x - baseline) of the example in a slot, (*features) for each input."""
        example, found = self.live[slot].example, []
        for x, baseline, direction in zip(self.inputs.x, self.inputs.baselines, self.direction, strict=True):
            start = baseline if baseline.dim() == 0 else baseline[example if len(baseline) == len(x) else 0]
            found.append(x[example].to(direction.dtype) - start.to(direction.dtype))
        return found

    def judged(self, changes: Sequence[float], sums: tuple[Tensor, ...]) -> list[_Judged]:
        """Measures the examples in work, writes the sums of those that are done, and returns these."""
        done = []
        for slot in list(self.live):
            found = self._judged(slot, changes, sums)
            if found is not None:
                done.append(found)
                del self.live[slot]
        return done

    def _judged(self, slot: int, changes: Sequence[float], sums: tuple[Tensor, ...]) -> _Judged | None:
        one, asked = self.live[slot], self.asked
        totals, found = self._measured(slot)
        residual = changes[one.example] - found.along
        step = residual / found.slope if found.slope > 0 else 0.0
        rounding = _ROUNDING * torch.finfo(totals[0].dtype).eps
        is_doubtful = abs(step) * found.size > max(found.total / 2, rounding * found.norm)
        if found.slope <= 0:
            is_doubtful = abs(residual) > rounding * max(abs(changes[one.example]), abs(found.along))
        converged = is_converged(found.total, found.norm, asked.tolerance) and not is_doubtful
        converged = converged and math.isfinite(found.norm)
        if not converged and math.isfinite(found.norm):
            allowed = 0.0 if is_doubtful else asked.tolerance * found.norm
            nodes = one.segments.refined(found.by_segment, found.total, allowed, asked.max_steps)
            if nodes is not None:
                one.nodes = nodes
                self._fold(slot, one.segments)
                return None
        for acc, total, direction in zip(sums, totals, self.direction, strict=True):
            acc[one.example] = total + step * direction[slot] if asked.correct and not is_doubtful else total
        difference = found.total / found.norm if found.norm > 0 else (0.0 if converged else math.inf)
        return _Judged(one.example, one.segments.n_nodes, difference, residual, converged)

    def _measured(self, slot: int) -> tuple[list[Tensor], _Measured]:
        """Returns the integrals of the gradients for each input, and what tells how near they are."""
        h = self.live[slot].segments.h
        totals, squares = [], np.zeros(len(h))
        between = norm = along = slope = size = 0.0
        for halves, direction, difference in zip(self.halves, self.direction, self._differences(slot), strict=True):
            factor = difference if self.asked.scaled else torch.ones_like(difference)
            even, odd = halves[slot].unbind(dim=1)
            total = sum(width * (e + o) for width, e, o in zip(h.tolist(), even, odd, strict=True))
            apart = torch.zeros_like(difference)
            for segment, (width, e, o) in enumerate(zip(h.tolist(), even, odd, strict=True)):
                part = 2 * width * (e - o) * factor
                squares[segment] += _square(part)
                apart += part
            between, norm = between + _square(apart), norm + _square(total * factor)
            along += float((total * difference).sum(dtype=torch.float64))
            slope += float((direction[slot] * difference).sum(dtype=torch.float64))
            size += _square(direction[slot] * factor)
            totals.append(total)
        return totals, _Measured(math.sqrt(between), np.sqrt(squares), math.sqrt(norm), along, slope, math.sqrt(size))

    def _fold(self, slot: int, segments: Segments) -> None:
        """Adds the sums of odd nodes to those of even nodes where a refinement gave the odd nodes an even index."""
        for halves in self.halves:
            for segment in np.flatnonzero(segments.folds).tolist():
                halves[slot, segment, 0] += halves[slot, segment, 1]
                halves[slot, segment, 1].zero_()


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


@dataclass(frozen=True)
class _Measured:
    """How near the integral of an example is.

    Attributes:
        total, by_segment: D of the path and of each segment.
        norm: of the attributions.
        along: the sum of the attributions.
        slope, size: the sum and the norm of the direction in which completeness is corrected.
    """

    total: float
    by_segment: Floats
    norm: float
    along: float
    slope: float
    size: float


@dataclass
class _Last:
    """The last row of the chunk before."""

    slot: int = -1
    alpha: float = 0.0
    slope: float = 0.0
    grads: tuple[Tensor, ...] = ()
