"""Sums gradients over even and over odd path points, and measures from their difference how near the integral is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from igfast import ops
from igfast.run.segments import Floats, Integers


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

    def part(self, rows: slice) -> Placed:
        """Returns where some of the rows belong."""
        slots, alphas, weights = self.slots[rows], self.alphas[rows], self.weights[rows]
        return Placed(slots, alphas, self.places[rows], self.following[rows], weights)


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

    def clear(self, slots: Sequence[int]) -> None:
        """Makes room for other examples in some slots."""
        for halves in self.halves:
            halves.index_fill_(0, self._place(slots), 0)

    def begin_round(self) -> None:
        """Forgets the direction of the round before."""
        self._last = _Last()
        for direction in self.direction:
            direction.zero_()

    def add(self, grads: Sequence[Tensor], rows: Placed, finite: Tensor, slopes: Floats) -> None:
        """Adds a chunk's gradients; sets `finite`, (rows,) uint8, to 0 for rows that are not.

        `slopes` has each row's derivative along the path, (rows,).
        """
        shared = torch.nonzero(rows.following >= 0).flatten()
        for halves, grad in zip(self.halves, grads, strict=True):
            acc = halves.flatten(0, 2)
            ops.accumulate_(acc, grad, rows.places, rows.weights, finite)
            if len(shared):
                twice, weights = rows.following[shared], rows.weights[shared]
                ops.accumulate_(acc, grad.index_select(0, shared), twice, weights)
        self._add_direction(grads, rows, slopes)

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

    def measured(
        self, slots: Sequence[int], h: Floats, differences: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Measured]]:
        """Returns the integrals of the gradients, (slots, *features) for each input, and how near each slot's are.

        Args:
            slots: of the examples.
            h: the width of each segment's intervals, (slots, segments).
            differences: (x - baseline) of each input, (slots, *features).
        """
        place, widths = self._place(slots), torch.from_numpy(h).to(self.direction[0].device)
        totals, squares, of_path = [], torch.zeros_like(widths), torch.zeros_like(widths[:, :1]).repeat(1, 5)
        for halves, direction, difference in zip(self.halves, self.direction, differences, strict=True):
            change = _flat(difference)
            factor = change if self._multiplied else torch.ones_like(change)
            total, apart = torch.zeros_like(change), torch.zeros_like(change)
            for segment, width in enumerate(widths.to(change.dtype).unsqueeze(2).unbind(1)):
                even, odd = halves[:, segment].index_select(0, place).reshape(len(slots), 2, -1).unbind(1)
                part = 2 * width * (even - odd) * factor
                squares[:, segment] += _squares(part)
                apart += part
                total += width * (even + odd)
            upwards = _flat(direction.index_select(0, place))
            along, slope = ((values * change).sum(dim=1, dtype=torch.float64) for values in (total, upwards))
            columns = (_squares(apart), _squares(total * factor), along, slope, _squares(upwards * factor))
            of_path += torch.stack(columns, dim=1)
            totals.append(total.reshape(difference.shape))
        numbers: Floats = torch.cat([of_path, squares], dim=1).cpu().numpy()
        numbers[:, [0, 1, 4, *range(5, numbers.shape[1])]] **= 0.5
        return totals, [
            Measured(total, row, norm, along, slope, size)
            for row, (total, norm, along, slope, size) in zip(numbers[:, 5:], numbers[:, :5].tolist(), strict=True)
        ]

    def correct(self, totals: Sequence[Tensor], slots: Sequence[int], steps: Sequence[float]) -> None:
        """Moves the integrals in some slots, (slots, *features) for each input, by a step in their direction."""
        moved = [index for index, step in enumerate(steps) if step]
        if not moved:
            return
        rows, place = self._place(moved), self._place([slots[index] for index in moved])
        for total, direction in zip(totals, self.direction, strict=True):
            step = torch.tensor([steps[index] for index in moved], dtype=total.dtype, device=total.device)
            by = direction.index_select(0, place) * step.reshape(-1, *[1] * (total.dim() - 1))
            total.index_add_(0, rows, by)

    def fold(self, segment: int, slots: Sequence[int]) -> None:
        """Adds the sums of odd nodes of a segment to those of even nodes, for slots where these indices became even."""
        place = self._place(slots)
        for halves in self.halves:
            even, odd = halves[:, segment].unbind(1)
            even.index_add_(0, place, odd.index_select(0, place))
            odd.index_fill_(0, place, 0)

    def _place(self, indices: Sequence[int]) -> Tensor:
        return torch.tensor(indices, device=self.direction[0].device)


def slopes(grads: Sequence[Tensor], of_row: Tensor, differences: Sequence[Tensor]) -> Floats:
    """Returns each row's derivative along the path: the product of its gradient and (x - baseline).

    Args:
        grads: (rows, *features) for each input.
        of_row: (rows,), the index of a row's example in `differences`.
        differences: (x - baseline) of each input, (examples, *features).
    """
    with torch.autocast(grads[0].device.type, enabled=False):  # autocast computes products in half precision
        products = [
            torch.einsum("rf,rf->r", _flat(grad).to(difference.dtype), _flat(difference).index_select(0, of_row))
            for grad, difference in zip(grads, differences, strict=True)
        ]
    found: Floats = torch.stack(products).sum(dim=0, dtype=torch.float64).cpu().numpy()
    return found


def _flat(tensor: Tensor) -> Tensor:
    """Returns a tensor as (rows, features)."""
    return tensor.reshape(len(tensor), math.prod(tensor.shape[1:]))


def _squares(tensor: Tensor) -> Tensor:
    """Returns the sum of the squares of each row, in float64."""
    return tensor.double().square().sum(dim=1)
