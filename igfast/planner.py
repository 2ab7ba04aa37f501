"""How many rows go through the model at a time. Pure functions of numbers: no model, no device, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

FIRST_CHUNK_BYTES = 2**21
"""Input bytes of the first chunk: 4 images of 224x224, 3 texts of 512 tokens. Small enough that one chunk's activations
stay far below those of `n_steps` inputs, large enough that a small model sees all its steps at once. With half of it
a ResNet-50 and an EfficientNet-Lite0 took 1.25 times as long per row (2 cores)."""

_PARALLEL_FIRST_BYTES, _PARALLEL_LARGEST_BYTES = 2**23, 3 * 2**22
"""Input bytes of the first chunk and of those that grow on a device that works on many rows at once, and waits for its
next launch where it has few: 13 images of 224x224, 5 texts of 512 tokens to begin with, 20 and 8 at most; one image of
1024x1024, whose peak is that of inference. Estimates, not measured."""

_LARGE_ROW_BYTES = 2**20
"""Rows from here on are channels-last from the start and stay so: on large images convolutions in it are faster and
need no reordered copies of their inputs and outputs, which are what sets the peak there."""

_CHEAP_BYTES = 3 * 2**26
"""Chunks grow to this peak without a trial, once the first has shown what a row takes: what csrc/host_pool.cpp keeps
resident in any case. With 10 images of 224x224 instead of 6 a ResNet-50 took 0.97 of the time per row and an
EfficientNet-Lite0 0.96, with 16 and 15 1.03 and 0.98 of that (2 cores)."""

_LARGEST_CHUNK_BYTES = 23 * 2**18
"""Input bytes that a growing chunk stays within: 10 images of 224x224, 7 texts of 512 tokens."""

_CHEAP_WEIGHTS = 2
"""Chunks also grow to a peak of so many times the bytes of the weights. Each chunk reads all of them, and puts them in
order for its products, so a model of many weights gains from more rows where others do not: a ViT-B/16 and a VGG-16
took 0.93 of the processor time per row with 8 images of 224x224 instead of 4, the former 0.94 of the time with 10
instead of 8, a ResNet-50 0.9 with 10 instead of 6 (2 cores of an Intel processor)."""

_LARGEST_SHARE = 5
"""A chunk that grows stays below this fraction of all rows, so that the peak stays below a tenth of the peak of a call
that takes all rows at once: lean execution keeps less for each row, too."""

_TRIED_SHARE = 8
"""One in so many rows of all calls may be spent on candidates. They are rarely better: in a call of 50 images on an
EfficientNet-Lite0, seven of twelve chunks were candidates or waited for one, and it took 1.4 times as long as the next
call."""

_WORTHWHILE = 0.97
"""Another layout or a larger size is taken for 3 % less time per row: the one may be slower elsewhere in the model, the
other takes memory for sure."""

_CLEAR = 0.85
"""A candidate that takes less of the time per row than this wins at once, one that takes less than `_WORTHWHILE` has to
do so twice: single chunks of a busy machine are off by 10 % and more."""


@dataclass
class ChunkPlan:
    """Chooses the size and the layout of chunks by timing the chunks that are computed anyway, over several calls.

    After the first chunk the size is what is cheap in memory. Where channels-last is a choice, the other layout is
    tried next; then the size grows while that improves the time per row. A candidate is given two chunks in a row: the
    first after any change fills caches and is not counted. The second is compared with the chunk just before the two.
    So calls of fewer than four chunks try nothing.

    Attributes:
        batch: number of examples; a chunk of at least that many rows holds whole steps, so that models whose output
            depends on the composition of a batch see the batch that the caller made.
        size: rows of the next chunk.
        largest: rows that `size` does not exceed.
        rows: rows of all calls, those of the present one included.
        may_change_layout: whether channels-last path points are a choice (4-d and 5-d inputs that are not already).
        channels_last: whether the next chunk's path points are to be channels-last.
        layout_verified: whether the model was seen to give the same values for channels-last points.
        savings: how many measures against lack of memory had to be taken at one row (`Evaluator.save_memory`).
        weight_bytes: bytes of the weights that each chunk reads, 0 if unknown.
    """

    batch: int
    size: int
    largest: int
    rows: int
    may_change_layout: bool = False
    channels_last: bool = False
    layout_verified: bool = False
    savings: int = 0
    weight_bytes: int = 0
    _is_fitted: bool = False  # to what is cheap in memory
    _rows_tried: int = 0
    _layout_tried: bool = False
    _is_settled: bool = False
    _is_warm: bool = False  # whether a chunk was computed since the call began or the size or the layout changed
    _seconds_per_row: float = 0.0  # of the last counted chunk of what is in use
    _in_use: tuple[int, bool] | None = None  # size and layout to go back to while a candidate is tried
    _ratios: list[float] = field(default_factory=list)  # the candidate's seconds per row to those of what is in use

    @staticmethod
    def fixed(
        batch: int,
        n_rows: int,
        row_bytes: int,
        size: int,
        may_change_layout: bool = False,
        prefers_channels_last: bool = False,
    ) -> ChunkPlan:
        """Chunks of `size` rows, as the caller asked; the rest as in `growing`."""
        plan = ChunkPlan(batch, size, size, n_rows, may_change_layout)
        return plan._starting(row_bytes, prefers_channels_last)

    @staticmethod
    def growing(
        batch: int,
        n_rows: int,
        row_bytes: int,
        may_change_layout: bool = False,
        prefers_channels_last: bool = False,
        weight_bytes: int = 0,
        is_parallel: bool = False,
    ) -> ChunkPlan:
        """Chunks that start at a few MiB of input and grow while that pays.

        Args:
            batch: number of examples.
            n_rows: rows of a call.
            row_bytes: bytes of one path point.
            may_change_layout: whether channels-last path points are a choice.
            prefers_channels_last: whether they are to be the first choice.
            weight_bytes: bytes of the weights that each chunk reads, 0 if unknown.
            is_parallel: whether the device is one that works on many rows at once, as GPUs do.
        """
        row_bytes, share = max(row_bytes, 1), n_rows // _LARGEST_SHARE
        first = min(n_rows, -(-FIRST_CHUNK_BYTES // row_bytes))
        largest_bytes = _LARGEST_CHUNK_BYTES
        if is_parallel:
            first = max(first, min(share, _PARALLEL_FIRST_BYTES // row_bytes))
            largest_bytes = _PARALLEL_LARGEST_BYTES
        largest = min(share, largest_bytes // row_bytes)
        plan = ChunkPlan(batch, first, max(first, largest), n_rows, may_change_layout)
        plan.weight_bytes = weight_bytes
        return plan._starting(row_bytes, prefers_channels_last)

    def _starting(self, row_bytes: int, prefers_channels_last: bool) -> ChunkPlan:
        is_large = row_bytes > _LARGE_ROW_BYTES
        self.channels_last = self.may_change_layout and (prefers_channels_last or is_large)
        self._layout_tried = is_large
        return self

    def resumed(self, n_rows: int) -> ChunkPlan:
        """A copy that goes on where this one is, for another call of the same kind and number of rows."""
        plan = replace(self, rows=self.rows + n_rows, _ratios=list(self._ratios))
        plan._stop_trying()
        plan._is_warm = False
        return plan

    def next_rows(self, rows_left: int) -> int:
        """Rows of the next chunk: whole steps where at least one fits, and no chunk much smaller than the others."""
        unit = self.batch if self.size >= self.batch else 1
        if rows_left % unit:  # chunks were smaller than a step so far: finish the one that was begun
            return rows_left % unit
        whole = self._whole(self.size)
        if self._in_use is not None:  # a candidate is tried at its size
            return min(whole, rows_left)
        n_chunks = -(-rows_left // whole)
        return unit * -(-rows_left // (unit * n_chunks))

    def n_alike(self, n_rows: int, rows_left: int, most: int) -> int:
        """How many chunks of `n_rows` come next, up to `most`, if nothing changes the plan and `rows_left` are left."""
        count = 0
        while count < most and rows_left and self.next_rows(rows_left) == n_rows:
            count, rows_left = count + 1, rows_left - n_rows
        return count

    def is_timing(self, rows_left: int) -> bool:
        """Whether the time of a chunk matters, after which `rows_left` rows of the call come."""
        return not self._is_settled and (self._in_use is not None or self._may_try(self._candidate(), rows_left))

    @property
    def is_settled(self) -> bool:
        """Whether the size is what it will be, unless memory runs out."""
        return self._is_settled and self._is_fitted

    def record(self, n_rows: int, seconds: float | None, rows_left: int) -> None:
        """Takes in how long a chunk of `n_rows` took, if known, and how many rows of the call come after it."""
        if seconds is None:  # and the next one may have waited for it
            self._is_warm = False
            return
        finishes_step = self.size >= self.batch and n_rows % self.batch  # and says nothing about the size
        if self._is_settled or finishes_step or 4 * n_rows < 3 * self._whole(self.size):
            return
        if not self._is_warm:
            self._is_warm = True
        elif self._in_use is None:
            self._seconds_per_row = seconds / n_rows
            self._try(rows_left)
        else:
            self._ratios.append(seconds / n_rows / self._seconds_per_row)
            self._judge(seconds / n_rows, rows_left)

    def limit_memory(self, row_peak: float, allowed: int | None) -> None:
        """Takes in what the tensors of a row of the largest chunk so far took at their peak, and what all may take.

        Both in bytes. Memory that is kept for later tensors is not in the former.
        """
        is_first = not self._is_fitted and self._in_use is None and not self.savings
        if allowed is not None:
            self.largest = min(self.largest, max(int(allowed / row_peak), self.size))
        if is_first:
            self._is_fitted = True
            cheap = min(int(max(_CHEAP_BYTES, _CHEAP_WEIGHTS * self.weight_bytes) / row_peak), self.largest)
            if self._whole(cheap) > self._whole(self.size):
                self.size, self._is_warm = cheap, False

    def shrink(self, n_rows: int) -> bool:
        """After a chunk of `n_rows` did not fit in memory: smaller ones, for good; False if it was one row.

        A candidate makes way for what is in use, which did fit; otherwise they have half as many rows.
        """
        if self._in_use is not None:
            self._stop_trying()
        elif n_rows > 1:
            self.size = n_rows // 2
        else:
            return False
        self.largest, self._is_settled, self._is_fitted = self.size, True, True
        return True

    def reject_layout(self) -> bool:
        """Goes back to the caller's layout for good after a chunk of another one failed; False if it was not another.

        A model may call `view` on its input, which asks for the layout that the caller gave.
        """
        if not self.may_change_layout or not self.channels_last:
            return False
        self._in_use = None
        self._ratios.clear()
        self.channels_last, self.may_change_layout, self._is_warm = False, False, False
        return True

    def _whole(self, size: int) -> int:
        """Rows of a full chunk: whole steps where at least one fits."""
        return size // self.batch * self.batch if size >= self.batch else size

    def _candidate(self) -> tuple[int, bool] | None:
        """What may be better than what is in use: the other layout first, then larger sizes."""
        if self.may_change_layout and not self._layout_tried:
            return self.size, not self.channels_last
        larger = min(2 * self.size, self.largest)
        return (larger, self.channels_last) if self._whole(larger) > self._whole(self.size) else None

    def _may_try(self, candidate: tuple[int, bool] | None, rows_left: int) -> bool:
        """Whether the rows are there for two chunks of a candidate."""
        rows = 0 if candidate is None else 2 * self._whole(candidate[0])
        return 0 < rows <= rows_left and self._rows_tried + rows <= self.rows // _TRIED_SHARE

    def _try(self, rows_left: int) -> None:
        """Puts a candidate in the place of what is in use for two chunks, if the rows are there for it."""
        candidate = self._candidate()
        if candidate is None:
            self._is_settled = True
            return
        if self._may_try(candidate, rows_left):
            self._rows_tried += 2 * self._whole(candidate[0])
            self._in_use = self.size, self.channels_last
            self.size, self.channels_last = candidate
            self._is_warm = False

    def _judge(self, seconds_per_row: float, rows_left: int) -> None:
        """After a candidate's chunks: whether it is taken, is dropped or has to do it again."""
        changes_layout = self._in_use is not None and self._in_use[1] != self.channels_last
        is_faster = self._ratios[-1] < _WORTHWHILE
        if is_faster and len(self._ratios) == 1 and self._ratios[0] >= _CLEAR:
            self._stop_trying()
            return
        self._ratios.clear()
        self._layout_tried = self._layout_tried or changes_layout
        if is_faster:
            self._in_use = None
            self._seconds_per_row = seconds_per_row
            self._try(rows_left)
        else:
            self._stop_trying()
            self._is_settled = not changes_layout  # sizes beyond one that is no better are not tried

    def _stop_trying(self) -> None:
        if self._in_use is not None:
            self.size, self.channels_last = self._in_use
            self._in_use, self._is_warm = None, False
