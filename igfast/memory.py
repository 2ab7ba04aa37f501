"""Asks the machine about memory; nothing else in igfast does."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_POLL_SECONDS = 0.002
_MIB = 2**20
_TRIM_AFTER_SECONDS = 0.3  # giving memory back takes up to 40 ms in a large process; short calls have little to give
_C_LIBRARY = ctypes.CDLL(None)
_mallopt = getattr(_C_LIBRARY, "mallopt", None) if hasattr(_C_LIBRARY, "malloc_trim") else None
_keepers: list[int] = []
_keepers_lock = threading.Lock()


def available_bytes() -> int:
    """Bytes of main memory that a process can still get: the machine's, or its cgroup's if that allows less."""
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists():
        allowed = limit.read_text().strip()
        if allowed != "max":
            free = min(free, int(allowed) - int(used.read_text()))
    return max(int(free), 0)


def resident_bytes() -> int:
    """Bytes of main memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


@contextmanager
def freed_blocks_kept() -> Iterator[None]:
    """Lets the C library (glibc) keep blocks that are freed during the block, and gives them back at its end.

    A chunk frees its activations, and the next one asks for the same sizes. By default glibc returns them to the system
    in between, which zeroes them again page by page: keeping them makes a ResNet-50 chunk 12 to 17 % faster. Afterwards
    the thresholds are the largest that glibc itself grows them to in any process that has freed large blocks.

    Nothing is changed where the user has set glibc's thresholds in the environment, and with other C libraries. Threads
    may be in it at the same time.
    """
    if _mallopt is None or _thresholds_set_by_user():
        yield
        return
    began = time.monotonic()
    with _keepers_lock:
        _keepers.append(1)
        _set_thresholds(mmap_bytes=32 * _MIB, trim_bytes=2**31 - 1, pad_bytes=64 * _MIB)
    try:
        yield
    finally:
        with _keepers_lock:
            _keepers.pop()
            if not _keepers:
                _set_thresholds(mmap_bytes=32 * _MIB, trim_bytes=64 * _MIB, pad_bytes=_MIB // 8)
        if time.monotonic() - began > _TRIM_AFTER_SECONDS:
            give_back_freed_blocks()


def give_back_freed_blocks() -> None:
    """Returns what the C library (glibc) kept to the system: blocks of one chunk size do not fit the next."""
    if _mallopt is not None:
        _C_LIBRARY.malloc_trim(0)


def _set_thresholds(mmap_bytes: int, trim_bytes: int, pad_bytes: int) -> None:
    """Sets M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD, by their numbers in glibc's malloc.h."""
    if _mallopt is not None:
        for parameter, value in ((-3, mmap_bytes), (-1, trim_bytes), (-2, pad_bytes)):
            _mallopt(parameter, value)


def _thresholds_set_by_user() -> bool:
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
    return any(name in os.environ for name in names) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")


@dataclass
class PeakMemory:
    """What `peak_memory` measured, in bytes; final when its block ends.

    Attributes:
        before: resident memory when the block began.
        peak: the highest resident memory during it.
    """

    before: int
    peak: int

    @property
    def over_before(self) -> int:
        """How far the peak was above the beginning."""
        return max(self.peak - self.before, 0)


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measures the peak of this process's resident memory during the block.

    Exact on Linux, where the kernel keeps the highest mark and lets it be reset; elsewhere, and where that is not
    permitted, a thread looks every 2 ms.
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
        """Until told to stop."""
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
