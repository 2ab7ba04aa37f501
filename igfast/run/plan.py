"""Computes how many rows go through the model at a time, from numbers alone: no model, no device, no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ChunkLimits:
    """The sizes up to which chunks pay on a kind of device, in bytes.

    Attributes:
        first: input of the first chunk.
        largest: the most input of later chunks.
        cheap: the most peak memory of later chunks, estimated from the first chunk's peak per row.
        share: later chunks grow to at most 1 / share of all rows.
    """

    first: int
    largest: int
    cheap: int
    share: int


CPU = ChunkLimits(first=2**21, largest=23 * 2**18, cheap=3 * 2**26, share=5)
"""The first chunk has 2 MiB of input, 4 images of 224x224. Chunks of 1 MiB took 1.25 times as long per row (ResNet-50
and EfficientNet-Lite0). Later chunks have at most 192 MiB of peak memory and 5.75 MiB of input, 10 images. Chunks of 10
images took 0.97 and 0.96 of the time per row of 6 images, chunks of 16 took 1.03 and 0.98 (2 cores). A fifth of all
rows keeps the peak below a tenth of the peak of all rows at once. More rows gain where another process takes a core,
and nothing elsewhere: of 50 texts of 128 tokens, chunks of 17 and 25 took a BERT-base 0.90 and 0.84 of the time of
chunks of 9 there, and 0.99 and 1.04 on a quiet machine. Their activations take 1.9 and 2.8 times the memory."""

PARALLEL = ChunkLimits(first=5 * 2**24, largest=5 * 2**24, cheap=2**34, share=1)
"""For devices that wait for Python where a chunk is small. 80 MiB of input are 139 images of 224x224. 50 images took a
ResNet-50 0.81, 0.17, 0.07, 0.04 and 0.025 s in chunks of 1, 5, 10, 25 and 50; the GPU computed for 0.015 s (H200). 50
texts of 512 tokens took a BERT-base 0.26 s at once and 0.30 s in chunks of 25."""

WATCHED = replace(PARALLEL, first=1)
"""The same where a limit is noticed only when it is exceeded: a first chunk of one row shows how many rows fit."""

_CHEAP_WEIGHTS = 2
"""The peak of a chunk may also be so many times the bytes of the weights, because each chunk reads all weights. A
ViT-B/16 and a VGG-16 took 0.93 of the processor time per row with 8 images of 224x224 instead of 4 (2 cores)."""


def limits_of(device_type: str, is_watched: bool) -> ChunkLimits:
    """Returns the limits on a type of device; `is_watched` as in `igfast.memory.scope.MemoryUse`."""
    return WATCHED if is_watched else CPU if device_type == "cpu" else PARALLEL


@dataclass(frozen=True, kw_only=True)
class ChunkPlan:
    """The sizes of one call's chunks.

    Attributes:
        batch: rows of a step. A chunk of at least that many rows holds whole steps.
        n_rows: rows of the call.
        rows: rows of a full chunk.
        row_bytes: bytes of one row's path point.
        channels_last: whether path points are channels-last by igfast's choice.
        limits: the limits that `rows` grows to after the first chunk; None where `rows` does not grow.
        weight_bytes: bytes of the weights that each chunk reads, 0 if unknown.
        most_rows: the most rows of a chunk, where more did not fit before; else None.
    """

    batch: int = 1
    n_rows: int
    rows: int = 1
    row_bytes: int
    channels_last: bool = False
    limits: ChunkLimits | None = None
    weight_bytes: int = 0
    most_rows: int | None = None

    def growing(self, limits: ChunkLimits) -> ChunkPlan:
        """Returns the plan with a first chunk of `limits.first` bytes of input, and larger ones after it."""
        first = min(self.n_rows, self.most_rows or self.n_rows, -(-limits.first // max(self.row_bytes, 1)))
        return replace(self, rows=first, limits=limits)

    def fitted(self, row_peak: float, allowed: int | None) -> ChunkPlan:
        """Returns the plan after its first chunk, which took `row_peak` bytes per row at the peak.

        All rows of a chunk together may take `allowed` bytes; None is no limit.
        """
        if self.limits is None:
            return self
        cheap = max(self.limits.cheap, _CHEAP_WEIGHTS * self.weight_bytes) / row_peak
        within = self.limits.largest // max(self.row_bytes, 1), self.n_rows // self.limits.share, int(cheap)
        rows = min(max(self.rows, min(within)), self.most_rows or self.n_rows)
        if allowed is not None:
            rows = min(rows, max(1, int(allowed / row_peak)))
        return replace(self, rows=rows, limits=None)

    def halved(self, n_rows: int) -> ChunkPlan | None:
        """Returns the plan after a chunk of `n_rows` did not fit in memory; None if the chunk was one row."""
        return replace(self, rows=n_rows // 2, limits=None) if n_rows > 1 else None

    def next_rows(self, rows_left: int) -> int:
        """Returns the next chunk's rows: whole steps where one fits, and no chunk much smaller than the others."""
        unit = self.batch if self.rows >= self.batch else 1
        if rows_left % unit:  # chunks were smaller than a step so far: finish the step that was begun
            return rows_left % unit
        n_chunks = -(-rows_left // (self.rows // unit * unit))
        return unit * -(-rows_left // (unit * n_chunks))
