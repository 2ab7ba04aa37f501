"""Sums gradients over even and over odd path points, and measures from their difference how near the integral is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from igfast import ops
from igfast.run.segments import Floats, Integers, Segments


@dataclass(frozen=True)
class Placed:
    """Where the rows of a round belong; every array has one entry for each row.

    Attributes:
        slots: the slot of the row's example.
        alphas: the row's alpha.
        places: (rows,) int64, the row's place among the sums of all slots, segments and parities.
        following: likewise in the next segment, for nodes that two segments share; -1 for others.
        weights: (rows,) float64, what the row counts in each.
    """

    slots: Integers
    alphas: Floats
    places: Tensor
    following: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Measured:
    """How near the integral of an example is, for one target.

    Attributes:
        total, by_segment: D of the path and of each segment: the norm of twice the difference of both sums.
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
    """The last row before a chunk."""

    slot: int = -1
    alpha: float = 0.0
    slope: float = 0.0
    grads: tuple[Tensor, ...] = ()


class SplitSums:
    """The sums of one target, of several examples at a time, each in a slot.

    For each input, `halves` has the sums of even and odd nodes, (slots, segments, 2, *features), and `direction`,
    (slots, *features), the direction in which completeness is corrected: the sum over neighbouring new nodes of
    h^2 (s_2 - s_1) (g_2 - g_1), with s the derivative along the path.

    Args:
        x: the inputs, (batch, *features) each.
        n_slots, n_segments: how many examples, and segments of each path.
        multiplied: whether attributions are multiplied by (x - baseline), for their norms.
    """

    def __init__(self, x: Sequence[Tensor], n_slots: int, n_segments: int, multiplied: bool) -> None:
        self._multiplied = multiplied
        self._last = _Last()

        def zeros(like: Tensor, *shape: int) -> Tensor:
            dtype = ops.accumulator_dtype(like.dtype)
            return torch.zeros(n_slots, *shape, *like.shape[1:], dtype=dtype, device=like.device)

        self.halves = [zeros(one, n_segments, 2) for one in x]
        self.direction = [zeros(one) for one in x]

    def clear(self, slot: int) -> None:
        """Makes room for another example in a slot."""
        for halves in self.halves:
            halves[slot].zero_()

    def begin_round(self) -> None:
        """Forgets the direction of the round before."""
        self._last = _Last()
        for direction in self.direction:
            direction.zero_()

    def add(self, grads: Sequence[Tensor], rows: Placed, finite: Tensor, differences: dict[int, list[Tensor]]) -> None:
        """Adds a chunk's gradients; sets `finite`, (rows,) uint8, to 0 for rows that are not.

        `differences` has (x - baseline) of each input, (*features), for the slots in the chunk.
        """
        shared = torch.nonzero(rows.following >= 0).flatten()
        for halves, grad in zip(self.halves, grads, strict=True):
            acc = halves.flatten(0, 2)
            ops.accumulate_(acc, grad, rows.places, rows.weights, finite)
            if len(shared):
                twice, weights = rows.following[shared], rows.weights[shared]
                ops.accumulate_(acc, grad.index_select(0, shared), twice, weights)
        self._add_direction(grads, rows, _slopes(grads, rows.slots, differences))

    def _add_direction(self, grads: Sequence[Tensor], rows: Placed, slopes: Floats) -> None:
        slots, alphas, last = rows.slots, rows.alphas, self._last
        weights = np.zeros(len(slots))
        steps = np.where(slots[1:] == slots[:-1], np.diff(alphas) ** 2 * np.diff(slopes), 0.0)
        weights[1:] += steps
        weights[:-1] -= steps
        if last.slot == slots[0]:
            step = (alphas[0] - last.alpha) ** 2 * (slopes[0] - last.slope)
            weights[0] += step
            self._add_to_direction(last.grads, slots[:1], np.array([-step]))
        self._add_to_direction(grads, slots, weights)
        kept = tuple(grad[-1:].clone() for grad in grads)
        self._last = _Last(int(slots[-1]), float(alphas[-1]), float(slopes[-1]), kept)

    def _add_to_direction(self, grads: Sequence[Tensor], slots: Integers, weights: Floats) -> None:
        device = grads[0].device
        place, weight = torch.from_numpy(slots).to(device), torch.from_numpy(weights).to(device)
        for direction, grad in zip(self.direction, grads, strict=True):
            ops.accumulate_(direction, grad, place, weight)

    def measured(self, slot: int, h: Floats, differences: Sequence[Tensor]) -> tuple[list[Tensor], Measured]:
        """Returns the integrals of the gradients for each input, and how near they are.

        Args:
            slot: of the example.
            h: the width of each segment's intervals.
            differences: (x - baseline) of each input, (*features).
        """
        totals, squares, widths = [], np.zeros(len(h)), h.tolist()
        between = norm = along = slope = size = 0.0
        for halves, direction, difference in zip(self.halves, self.direction, differences, strict=True):
            factor = difference if self._multiplied else torch.ones_like(difference)
            total, apart = torch.zeros_like(difference), torch.zeros_like(difference)
            for segment, (width, (even, odd)) in enumerate(zip(widths, halves[slot], strict=True)):
                part = 2 * width * (even - odd) * factor
                squares[segment] += _square(part)
                apart += part
                total += width * (even + odd)
            between, norm = between + _square(apart), norm + _square(total * factor)
            along += float((total * difference).sum(dtype=torch.float64))
            slope += float((direction[slot] * difference).sum(dtype=torch.float64))
            size += _square(direction[slot] * factor)
            totals.append(total)
        return totals, Measured(math.sqrt(between), np.sqrt(squares), math.sqrt(norm), along, slope, math.sqrt(size))

    def fold(self, slot: int, segments: Segments) -> None:
        """Adds the sums of odd nodes to those of even nodes where a refinement gave the odd nodes an even index."""
        for halves in self.halves:
            for segment in np.flatnonzero(segments.folds).tolist():
                halves[slot, segment, 0] += halves[slot, segment, 1]
                halves[slot, segment, 1].zero_()


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _slopes(grads: Sequence[Tensor], slots: Integers, differences: dict[int, list[Tensor]]) -> Floats:
    """Returns each row's derivative along the path: the product of its gradient and (x - baseline)."""
    cuts = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(slots)]
    parts = []
    for start, stop in pairwise(cuts):
        with torch.autocast(grads[0].device.type, enabled=False):  # autocast computes products in half precision
            products = [
                grad[start:stop].reshape(stop - start, -1).to(difference.dtype) @ difference.flatten()
                for grad, difference in zip(grads, differences[int(slots[start])], strict=True)
            ]
        parts.append(torch.stack(products).sum(dim=0, dtype=torch.float64))
    slopes: Floats = torch.cat(parts).cpu().numpy()
    return slopes
