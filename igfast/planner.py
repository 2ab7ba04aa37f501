"""How many rows go through the model at a time. Pure functions of numbers: no model, no device, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_CHUNK_BYTES = 2**20
"""Input bytes of the first chunk. Small enough that one chunk's activations stay far below those of `n_steps` inputs,
large enough that a small model sees all its steps at once."""

_LARGEST_CHUNK_BYTES = 2**22
"""Input bytes that a growing chunk stays within: where one row is larger than that, a second would double the peak
memory and save no time (one large image keeps all cores busy)."""

_LARGEST_SHARE = 12
"""A chunk that grows stays below this fraction of all rows, so that the peak stays below a tenth of the peak of a call
that takes all rows at once, model and caller's tensors included."""

_WORTHWHILE = 0.97
"""A change is kept if it takes at least 3 % off the time per row; less is within the noise of a busy machine."""

_CHUNKS_PER_TRIAL = 2
"""Chunks that each candidate is timed over, the faster one counting: the first of a new shape also pays for the
libraries' set-up, and single chunks of a busy machine are off by 10 % and more."""


@dataclass
class ChunkPlan:
    """Chooses the size and the layout of chunks by timing the chunks that are computed anyway.

    The size doubles while that improves the time per row; then, where channels-last is a choice, that is tried once.

    Attributes:
        batch: number of examples; a chunk of at least that many rows holds whole steps, so that models whose output
            depends on the composition of a batch see the batch that the caller made.
        size: rows of the next chunk.
        largest: rows that `size` never exceeds.
        may_change_layout: whether channels-last path points are a choice (4-d and 5-d inputs that are not already).
        channels_last: whether the next chunk's path points are to be channels-last.
    """

    batch: int
    size: int
    largest: int
    may_change_layout: bool = False
    channels_last: bool = False
    _settled: bool = False
    _times: list[float] = field(default_factory=list)
    _best: _Candidate | None = None

    @staticmethod
    def fixed(batch: int, size: int, may_change_layout: bool = False) -> ChunkPlan:
        """Chunks of `size` rows, as the caller asked."""
        return ChunkPlan(batch, size, size, may_change_layout)

    @staticmethod
    def growing(batch: int, n_rows: int, row_bytes: int, may_change_layout: bool = False) -> ChunkPlan:
        """Chunks that start at about `FIRST_CHUNK_BYTES` of input and grow while that pays."""
        first = max(1, min(n_rows, FIRST_CHUNK_BYTES // max(row_bytes, 1)))
        largest = min(n_rows // _LARGEST_SHARE, _LARGEST_CHUNK_BYTES // max(row_bytes, 1))
        return ChunkPlan(batch, first, max(first, largest), may_change_layout)

    def next_rows(self, rows_left: int) -> int:
        """Rows of the next chunk: whole steps where at least one fits."""
        size = self.size - self.size % self.batch if self.size >= self.batch else self.size
        return min(size, rows_left)

    def record(self, n_rows: int, seconds: float) -> None:
        """Takes in how long a chunk of `n_rows` took and chooses the next size and layout."""
        if self._settled:
            return
        self._times.append(seconds / n_rows)
        warm_up = 1 if self._best is None else 0  # the first chunk of all fills caches
        if len(self._times) == warm_up + _CHUNKS_PER_TRIAL:
            self._judge(_Candidate(min(self._times[warm_up:]), self.size, self.channels_last))
            self._times = []

    def reject_layout(self) -> bool:
        """Goes back to the caller's layout for good after a chunk of another one failed; False if it was not another.

        A model may call `view` on its input, which asks for the layout that the caller gave.
        """
        if not self.may_change_layout or not self.channels_last:
            return False
        self.channels_last, self._settled = False, True
        return True

    def _judge(self, tried: _Candidate) -> None:
        better = self._best is None or tried.seconds_per_row < _WORTHWHILE * self._best.seconds_per_row
        if self._best is None or better:
            self._best = tried
        if better and not tried.channels_last and self.size * 2 <= self.largest:
            self.size *= 2
            return
        self.size = self._best.size
        self.channels_last = self.may_change_layout and (self._best.channels_last or not tried.channels_last)
        self._settled = tried.channels_last or not self.may_change_layout


@dataclass(frozen=True)
class _Candidate:
    """A size and a layout that were tried, and what they cost."""

    seconds_per_row: float
    size: int
    channels_last: bool
