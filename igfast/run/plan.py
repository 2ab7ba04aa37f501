"""How many rows go through the model at a time. Pure functions of numbers: no model, no device, no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Gains:
    """What chunks gain from on a kind of device; sizes in bytes.

    Attributes:
        first: input of the first chunk.
        largest: input that later chunks stay within.
        cheap: peak memory that later chunks may have, once the first has shown what a row takes.
        share: a chunk stays below one of so many parts of all rows.
    """

    first: int
    largest: int
    cheap: int
    share: int


CPU = Gains(first=2**21, largest=23 * 2**18, cheap=3 * 2**26, share=5)
"""First 2 MiB, 4 images of 224x224: with half of it a ResNet-50 and an EfficientNet-Lite0 took 1.25 times as long per
row. Then 192 MiB of peak memory or 5.75 MiB of input, 10 images: 0.97 and 0.96 of the time per row of 6 images, 16 took
1.03 and 0.98 (2 cores). A fifth of all rows keeps the peak below a tenth of that of a call that takes all rows at
once."""

PARALLEL = Gains(first=2**26, largest=2**26, cheap=2**34, share=1)
"""For devices that wait for Python where a chunk is small. 64 MiB of input are 111 images of 224x224: a ResNet-50 took
0.81, 0.17, 0.07, 0.04 and 0.025 s for 50 of them in chunks of 1, 5, 10, 25 and 50, of which the GPU computed 0.015 s
(H200)."""

_CHEAP_WEIGHTS = 2
"""Chunks may also have a peak of so many times the bytes of the weights. Each chunk reads all of them, so a model of
many weights gains from more rows where others do not: a ViT-B/16 and a VGG-16 took 0.93 of the processor time per row
with 8 images of 224x224 instead of 4 (2 cores)."""


@dataclass(frozen=True)
class ChunkPlan:
    """The chunks of one call.

    Attributes:
        batch: rows of a step. A chunk of at least that many rows holds whole steps.
        n_rows: rows of the call.
        rows: rows of a full chunk.
        row_bytes: bytes of one row's path point.
        channels_last: whether path points are channels-last by igfast's choice.
        gains: what the size grows by after the first chunk; None where it is not to grow.
        weight_bytes: bytes of the weights that each chunk reads, 0 if unknown.
        most_rows: rows that a chunk does not exceed, since more did not fit before; None for no such number.
    """

    batch: int
    n_rows: int
    rows: int
    row_bytes: int
    channels_last: bool = False
    gains: Gains | None = None
    weight_bytes: int = 0
    most_rows: int | None = None

    def growing(self, gains: Gains) -> ChunkPlan:
        """The plan with a first chunk of `gains.first` bytes of input, to grow as a device gains from it."""
        first = min(self.n_rows, self.most_rows or self.n_rows, -(-gains.first // max(self.row_bytes, 1)))
        return replace(self, rows=first, gains=gains)

    def fitted(self, row_peak: float, allowed: int | None) -> ChunkPlan:
        """The plan after its first chunk, which showed that a row takes `row_peak` bytes at the peak.

        Args:
            row_peak: bytes.
            allowed: bytes that all rows of a chunk may take; None for no limit.
        """
        if self.gains is None:
            return self
        cheap = max(self.gains.cheap, _CHEAP_WEIGHTS * self.weight_bytes) / row_peak
        within = self.gains.largest // max(self.row_bytes, 1), self.n_rows // self.gains.share, int(cheap)
        rows = min(max(self.rows, min(within)), self.most_rows or self.n_rows)
        if allowed is not None:
            rows = min(rows, max(1, int(allowed / row_peak)))
        return replace(self, rows=rows, gains=None)

    def halved(self, n_rows: int) -> ChunkPlan | None:
        """The plan after a chunk of `n_rows` did not fit in memory; None if it was one row."""
        return replace(self, rows=n_rows // 2, gains=None) if n_rows > 1 else None

    def next_rows(self, rows_left: int) -> int:
        """Rows of the next chunk: whole steps where at least one fits, and no chunk much smaller than the others."""
        unit = self.batch if self.rows >= self.batch else 1
        if rows_left % unit:  # chunks were smaller than a step so far: finish the one that was begun
            return rows_left % unit
        n_chunks = -(-rows_left // (self.rows // unit * unit))
        return unit * -(-rows_left // (unit * n_chunks))
