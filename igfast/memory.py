"""Asks the machine about memory; nothing else in igfast does."""

from __future__ import annotations

import ctypes
import gc
import importlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from igfast.ops._load import kernels_loaded

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_POLL_SECONDS = 0.002
_TRIM_AFTER_SECONDS = 0.3  # giving memory back takes up to 40 ms in a large process; short calls have little to give
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc


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
    """Lets PyTorch keep blocks that are freed on the CPU during the block, and gives them back at its end.

    A chunk frees its activations, and the next one asks for the same sizes. The C library neither hands them out again
    reliably (its heap grew to three times of what was alive on a ResNet-50) nor for free: what goes back to the system
    comes back zeroed page by page. See csrc/host_pool.cpp; nothing happens without the compiled operators or where the
    user has replaced PyTorch's CPU allocator. Threads may be in it at the same time.
    """
    pool = importlib.import_module("igfast._C") if kernels_loaded() else None
    if pool is None or not pool.enter_host_pool():
        yield
        return
    began = time.monotonic()
    try:
        yield
    finally:
        pool.leave_host_pool()
        pool.empty_host_pool()
        if time.monotonic() - began > _TRIM_AFTER_SECONDS:
            give_back_freed_blocks()


def give_back_freed_blocks() -> None:
    """Returns freed blocks to the system."""
    if kernels_loaded():
        importlib.import_module("igfast._C").empty_host_pool()
    if _malloc_trim is not None:
        _malloc_trim(0)


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
