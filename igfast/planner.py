"""How many rows go through the model at a time. Pure functions of numbers: no model, no device, no clock."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

FIRST_CHUNK_BYTES = 2**21
"""Input bytes of the first chunk: 4 images of 224x224, 3 texts of 512 tokens. Small enough that one chunk's activations
stay far below those of `n_steps` inputs, large enough that a small model sees all its steps at once. With half of it
a ResNet-50 took 1.27 times and an EfficientNet-Lite0 2.3 times as long per row (2 cores)."""

_LARGE_ROW_BYTES = 2**20
"""Rows from here on are channels-last from the start: on large images convolutions in it are faster and need no
reordered copies of their inputs and outputs, which are what sets the peak there."""

_LARGEST_CHUNK_BYTES = 2**22
"""Input bytes that a growing chunk stays within: 6 images of 224x224, 5 texts of 512 tokens. From 4 images on a
ResNet-50 and a VGG-16 are flat, an EfficientNet-Lite0 takes 0.83 of the time at 8 (2 cores)."""

_LARGEST_SHARE = 5
"""A chunk that grows stays below this fraction of all rows, so that the peak stays below a tenth of the peak of a call
that takes all rows at once: lean execution keeps less for each row, too."""

_WORTHWHILE = 0.97
"""Another layout or a larger size is taken for 3 % less time per row: the one may be slower elsewhere in the model, the
other takes memory for sure."""

_CLEAR = 0.85
"""A candidate that takes less of the time per row than this at its first chunk, which also pays for the libraries'
set-up, is taken at once. Otherwise two of three chunks decide, each beside one of the other side: single chunks of a
busy machine are off by 10 % and more, and it slows down and speeds up within seconds."""

_PAIRS = 3


@dataclass
class ChunkPlan:
    """Chooses the size and the layout of chunks by timing the chunks that are computed anyway, over several calls.

    Where channels-last is a choice, that is tried first; then the size grows while that improves the time per row.

    Attributes:
        batch: number of examples; a chunk of at least that many rows holds whole steps, so that models whose output
            depends on the composition of a batch see the batch that the caller made.
        size: rows of the next chunk.
        largest: rows that `size` never exceeds.
        may_change_layout: whether channels-last path points are a choice (4-d and 5-d inputs that are not already).
        channels_last: whether the next chunk's path points are to be channels-last.
        layout_verified: whether the model was seen to give the same values for channels-last points.
        savings: how many measures against lack of memory had to be taken at one row (`Evaluator.save_memory`).
    """

    batch: int
    size: int
    largest: int
    may_change_layout: bool = False
    channels_last: bool = False
    layout_verified: bool = False
    savings: int = 0
    _settled: bool = False
    _is_first: bool = True
    _layout_tried: bool = False
    _incumbent: _Candidate | None = None
    _challenger: _Candidate | None = None

    @staticmethod
    def fixed(batch: int, size: int, may_change_layout: bool = False) -> ChunkPlan:
        """Chunks of `size` rows, as the caller asked."""
        return ChunkPlan(batch, size, size, may_change_layout)

    @staticmethod
    def growing(batch: int, n_rows: int, row_bytes: int, may_change_layout: bool = False) -> ChunkPlan:
        """Chunks that start at about `FIRST_CHUNK_BYTES` of input and grow while that pays."""
        first = min(n_rows, -(-FIRST_CHUNK_BYTES // max(row_bytes, 1)))
        largest = min(n_rows // _LARGEST_SHARE, _LARGEST_CHUNK_BYTES // max(row_bytes, 1))
        plan = ChunkPlan(batch, first, max(first, largest), may_change_layout)
        if may_change_layout and row_bytes > _LARGE_ROW_BYTES:
            plan.channels_last = plan._layout_tried = True
        return plan

    def resumed(self) -> ChunkPlan:
        """A copy that goes on where this one is, for another call of the same kind."""
        plan = copy.deepcopy(self)
        plan._is_first = True
        return plan

    def next_rows(self, rows_left: int) -> int:
        """Rows of the next chunk: whole steps where at least one fits, and no chunk much smaller than the others."""
        unit = self.batch if self.size >= self.batch else 1
        if rows_left % unit:  # chunks were smaller than a step so far: finish the one that was begun
            return rows_left % unit
        units_left, units = -(-rows_left // unit), self.size // unit
        n_chunks = -(-units_left // units)
        return min(unit * -(-units_left // n_chunks), rows_left) if self._settled else min(unit * units, rows_left)

    def record(self, n_rows: int, seconds: float) -> None:
        """Takes in how long a chunk of `n_rows` took."""
        unit = self.batch if self.size >= self.batch else 1
        if self._settled or n_rows < self.size // unit * unit:  # one that finishes a step says nothing about its size
            return
        if self._is_first:  # the first chunk of a call fills caches and is not counted
            self._is_first = False
            return
        if self._incumbent is None:
            self._incumbent = _Candidate(self.size, self.channels_last)
        running = self._incumbent if self._is_next(self._incumbent) else self._challenger
        if running is not None:
            running.seconds_per_row.append(seconds / n_rows)
        if self._challenger is None:
            self._challenge()
        else:
            self._judge(self._incumbent, self._challenger)

    def limit(self, n_rows: int) -> None:
        """Keeps sizes that are still to be tried at or below `n_rows`."""
        self.largest = min(self.largest, max(n_rows, self.size))

    def halve(self, n_rows: int) -> bool:
        """After a chunk of `n_rows` did not fit in memory: chunks of half of it, for good; False if it was one row."""
        if n_rows <= 1:
            return False
        self.size = self.largest = n_rows // 2
        self._settled = True
        return True

    def reject_layout(self) -> bool:
        """Goes back to the caller's layout for good after a chunk of another one failed; False if it was not another.

        A model may call `view` on its input, which asks for the layout that the caller gave.
        """
        if not self.may_change_layout or not self.channels_last:
            return False
        self.channels_last, self.may_change_layout = False, False
        self._incumbent, self._challenger = _Candidate(self.size, False), None
        return True

    def keep_verified_layout(self) -> None:
        """Drops a layout that was about to be tried."""
        if not self.layout_verified:
            self.reject_layout()

    def _is_next(self, candidate: _Candidate) -> bool:
        return (self.size, self.channels_last) == (candidate.size, candidate.channels_last)

    def _use(self, candidate: _Candidate) -> None:
        self.size, self.channels_last = candidate.size, candidate.channels_last

    def _challenge(self) -> None:
        """Puts the next candidate beside the incumbent: the other layout first, then larger sizes."""
        if self.may_change_layout and not self._layout_tried:
            self._layout_tried = True
            self._challenger = _Candidate(self.size, True)
            self.channels_last = True
        elif self.size < self.largest:
            self._challenger = _Candidate(min(2 * self.size, self.largest), self.channels_last)
            self.size = self._challenger.size
        else:
            self._settled = True

    def _judge(self, incumbent: _Candidate, challenger: _Candidate) -> None:
        """After a chunk of either: whose turn it is, or who has won and what comes next."""
        changes_layout = challenger.channels_last != incumbent.channels_last
        in_turns = zip(challenger.seconds_per_row, incumbent.seconds_per_row, strict=False)
        ratios = [theirs / ours for theirs, ours in in_turns]
        won = sum(ratio < _WORTHWHILE for ratio in ratios)
        needed = _PAIRS // 2 + 1
        wins = won >= needed or ratios[0] < _CLEAR
        if not wins and len(ratios) - won < needed:
            self._use(incumbent if self._is_next(challenger) else challenger)
            return
        winner = challenger if wins else incumbent
        self._use(winner)
        self._incumbent, self._challenger = _Candidate(winner.size, winner.channels_last), None
        self._incumbent.seconds_per_row.append(winner.seconds_per_row[-1])
        if wins or changes_layout:
            self._challenge()
        else:
            self._settled = True


@dataclass
class _Candidate:
    """A size and a layout that are tried, and what they cost in each chunk so far."""

    size: int
    channels_last: bool
    seconds_per_row: list[float] = field(default_factory=list)
