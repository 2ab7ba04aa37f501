"""Measures the peak of this process's resident memory."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from igfast.memory.machine import resident_bytes

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_POLL_SECONDS = 0.002


@dataclass
class PeakMemory:
    """The resident memory that `peak_memory` measured, in bytes; final when the block ends.

    Attributes:
        before: resident memory when the block began.
        peak: the highest resident memory during the block.
    """

    before: int
    peak: int

    @property
    def over_before(self) -> int:
        """The peak less the resident memory when the block began, at least 0."""
        return max(self.peak - self.before, 0)


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measures the peak of this process's resident memory during the block.

    On Linux the peak is exact: the kernel records the high-water mark, and the block begins with a reset of that mark.
    Elsewhere, and where a reset is not permitted, a thread polls every 2 ms.
    """
    gc.collect()
    measured = PeakMemory(before=resident_bytes(), peak=resident_bytes())
    try:
        _CLEAR_REFS.write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        with _polling(measured):
            yield measured
    else:
        try:
            yield measured
        finally:
            measured.peak = max(_high_water_bytes(), measured.before)


def _high_water_bytes() -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@contextmanager
def _polling(measured: PeakMemory) -> Iterator[None]:
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(_POLL_SECONDS):
            measured.peak = max(measured.peak, resident_bytes())

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        measured.peak = max(measured.peak, resident_bytes())
