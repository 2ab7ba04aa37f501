"""How many rows go through the model at a time. Pure functions of numbers: no model, no device, no clock."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_CHUNK_BYTES = 2**20
"""Input bytes of the first chunk. Small enough that one chunk's activations stay far below those of `n_steps` inputs,
large enough that a small model sees all its steps at once."""

_LARGEST_SHARE = 12
"""A chunk that grows stays below this fraction of all rows, so that the peak stays below a tenth of the peak of a call
that takes all rows at once, model and caller's tensors included."""

_WORTHWHILE = 0.97
"""Growing goes on while it takes at least 3 % off the time per row; less is within the noise of a busy machine."""


@dataclass
class ChunkPlan:
    """Chooses chunk sizes from the times of the chunks before, doubling while the time per row improves.

    The first chunk of all only warms up (libraries build their primitives, caches fill), so it is timed but not judged.

    Attributes:
        batch: number of examples; a chunk of at least that many rows holds whole steps, so that models whose output
            depends on the composition of a batch see the batch that the caller made.
        size: rows of the next chunk.
        largest: rows that `size` never exceeds.
    """

    batch: int
    size: int
    largest: int
    _warm: bool = False
    _settled: bool = False
    _best: tuple[float, int] | None = None

    @staticmethod
    def fixed(batch: int, size: int) -> ChunkPlan:
        """Chunks of `size` rows, as the caller asked."""
        return ChunkPlan(batch, size, size, _settled=True)

    @staticmethod
    def growing(batch: int, n_rows: int, row_bytes: int) -> ChunkPlan:
        """Chunks that start at about `FIRST_CHUNK_BYTES` of input and grow while that pays."""
        first = max(1, min(n_rows, FIRST_CHUNK_BYTES // max(row_bytes, 1)))
        return ChunkPlan(batch, first, max(first, n_rows // _LARGEST_SHARE))

    def next_rows(self, rows_left: int) -> int:
        """Rows of the next chunk: whole steps where at least one fits."""
        size = self.size - self.size % self.batch if self.size >= self.batch else self.size
        return min(size, rows_left)

    def record(self, n_rows: int, seconds: float) -> None:
        """Takes in how long a chunk of `n_rows` took and chooses the next size."""
        if self._settled:
            return
        if not self._warm:
            self._warm = True
            return
        per_row = seconds / n_rows
        if self._best is not None and per_row > _WORTHWHILE * self._best[0]:
            self.size, self._settled = self._best[1], True
        elif self.size * 2 > self.largest:
            self._settled = True
        else:
            self._best = (per_row, self.size)
            self.size *= 2
