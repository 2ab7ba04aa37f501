"""How many rows go through the model at a time. Pure functions of numbers: no model, no device, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_CHUNK_BYTES = 2**20
"""Input bytes of the first chunk. Small enough that one chunk's activations stay far below those of `n_steps` inputs,
large enough that a small model sees all its steps at once."""

_LARGEST_CHUNK_BYTES = 2**22
"""Input bytes that a growing chunk stays within: where one row is larger than that, a second would double the peak
memory and save no time (one large image keeps all cores busy)."""

_LARGEST_SHARE = 16
"""A chunk that grows stays below this fraction of all rows, so that the peak stays below a tenth of the peak of a call
that takes all rows at once, with room for what the C library's allocator loses to fragmentation."""

_WORTHWHILE_LAYOUT = 0.97
"""The caller's layout is left only for 3 % less time per row; a larger size, within its bounds, for any gain."""

_CHUNKS_PER_TRIAL = 2
"""Chunks that each candidate is timed over, the faster one counting: the first of a new shape also pays for the
libraries' set-up, and single chunks of a busy machine are off by 10 % and more."""


@dataclass(frozen=True)
class Choice:
    """A size and a layout of chunks, as they are remembered from one call to the next."""

    size: int
    channels_last: bool


@dataclass
class ChunkPlan:
    """Chooses the size and the layout of chunks by timing the chunks that are computed anyway.

    Where channels-last is a choice, that is tried first; then the size grows while that improves the time per row.

    Attributes:
        batch: number of examples; a chunk of at least that many rows holds whole steps, so that models whose output
            depends on the composition of a batch see the batch that the caller made.
        size: rows of the next chunk.
        largest: rows that `size` never exceeds.
        may_change_layout: whether channels-last path points are a choice (4-d and 5-d inputs that are not already).
        channels_last: whether the next chunk's path points are to be channels-last.
        layout_verified: whether the model was seen to give the same values for channels-last points.
    """

    batch: int
    size: int
    largest: int
    may_change_layout: bool = False
    channels_last: bool = False
    layout_verified: bool = False
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
        first = min(n_rows, -(-FIRST_CHUNK_BYTES // max(row_bytes, 1)))
        largest = min(n_rows // _LARGEST_SHARE, _LARGEST_CHUNK_BYTES // max(row_bytes, 1))
        return ChunkPlan(batch, first, max(first, largest), may_change_layout)

    @staticmethod
    def settled(batch: int, choice: Choice) -> ChunkPlan:
        """Chunks as an earlier call chose them."""
        layout = choice.channels_last
        return ChunkPlan(batch, choice.size, choice.size, layout, layout, layout_verified=layout, _settled=True)

    @property
    def choice(self) -> Choice | None:
        """What was chosen in the end; None while that is open."""
        return Choice(self.size, self.channels_last) if self._settled else None

    def next_rows(self, rows_left: int) -> int:
        """Rows of the next chunk: whole steps where at least one fits, and no chunk much smaller than the others."""
        unit = self.batch if self.size >= self.batch else 1
        if rows_left % unit:  # chunks were smaller than a step so far: finish the one that was begun
            return rows_left % unit
        units_left, units = -(-rows_left // unit), self.size // unit
        n_chunks = -(-units_left // units)
        return min(unit * -(-units_left // n_chunks), rows_left) if self._settled else min(unit * units, rows_left)

    def record(self, n_rows: int, seconds: float) -> bool:
        """Takes in how long a chunk of `n_rows` took; returns whether the next chunk has another size or layout."""
        if self._settled:
            return False
        before = self.size, self.channels_last
        self._times.append(seconds / n_rows)
        warm_up = 1 if self._best is None else 0  # the first chunk of all fills caches
        if len(self._times) == warm_up + _CHUNKS_PER_TRIAL:
            self._judge(_Candidate(min(self._times[warm_up:]), self.size, self.channels_last))
            self._times = []
        return (self.size, self.channels_last) != before

    def reject_layout(self) -> bool:
        """Goes back to the caller's layout for good after a chunk of another one failed; False if it was not another.

        A model may call `view` on its input, which asks for the layout that the caller gave.
        """
        if not self.may_change_layout or not self.channels_last:
            return False
        self.channels_last, self.may_change_layout, self._times = False, False, []
        self._grow_or_settle(worthwhile=True)
        return True

    def keep_verified_layout(self) -> None:
        """Drops a layout that was about to be tried."""
        if not self.layout_verified:
            self.reject_layout()

    def _judge(self, tried: _Candidate) -> None:
        is_first, previous = self._best is None, self._best or tried
        needed = 1.0 if tried.channels_last == previous.channels_last else _WORTHWHILE_LAYOUT
        better = is_first or tried.seconds_per_row < needed * previous.seconds_per_row
        best = self._best = tried if better else previous
        self.size, self.channels_last = best.size, best.channels_last
        if is_first and self.may_change_layout:
            self.channels_last = True
        else:
            self._grow_or_settle(worthwhile=better or tried.size == previous.size)

    def _grow_or_settle(self, worthwhile: bool) -> None:
        if worthwhile and self.size < self.largest:
            self.size = min(2 * self.size, self.largest)
        else:
            self._settled = True


@dataclass(frozen=True)
class _Candidate:
    """A size and a layout that were tried, and what they cost."""

    seconds_per_row: float
    size: int
    channels_last: bool
