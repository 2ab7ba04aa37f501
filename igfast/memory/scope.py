"""Keeps the memory of one call within a budget, measures it, and returns it to the system."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from igfast.errors import IgfastMemoryError, warn
from igfast.memory.budget import MemoryBudget, allowed_bytes
from igfast.memory.recovery import give_back_freed_blocks, is_out_of_memory
from igfast.memory.watch import AllocationWatch
from igfast.ops._load import kernels_loaded

_UNCOUNTED_BYTES = 2**27  # of a budget, for code and libraries' scratch space beside tensors; at most an eighth of it
_TRIM_AFTER_SECONDS = 0.3  # a trim takes up to 40 ms in a large process, and shorter calls have little to free
_RETURN_ALL_AFTER_SECONDS = 0.1  # after a shorter call, page faults would be up to a fifth of the next call's time
_KEPT_BYTES = 2**25  # of free pages, at most, after such a shorter call


@dataclass
class MemoryUse:
    """The memory that an attribution may take and takes, in bytes beyond what was in use when it began.

    Attributes:
        device: the device of the memory.
        allowed: the bytes that the budget allows; None if unknown.
        for_tensors: the part of `allowed` for tensors; the rest is for code and libraries' scratch space.
        peak: returns the most that PyTorch's allocator held so far; None where the peak is not measured. On the CPU,
            the peak includes attributions that other threads run at the same time.
        peak_of_tensors: returns the same since `restart_peak`, without free pages that are kept for later tensors.
        restart_peak: restarts `peak_of_tensors`.
        for_results: returns a context manager for allocations of so many bytes that outlive the chunks.
        release: takes such bytes out of the count, when their tensors are freed during the call.
        is_watched: whether the limit is noticed only when it is exceeded, so that a first chunk must be small.
    """

    device: torch.device
    allowed: int | None
    for_tensors: int | None = None
    peak: Callable[[], int | None] = lambda: None
    peak_of_tensors: Callable[[], int | None] = lambda: None
    restart_peak: Callable[[], object] = lambda: None
    for_results: Callable[[int], AbstractContextManager[object]] = nullcontext
    release: Callable[[int], object] = lambda n_bytes: None  # noqa: ARG005
    is_watched: bool = False


@contextmanager
def memory_scope(device: torch.device, budget: MemoryBudget) -> Iterator[MemoryUse]:
    """Keeps what is allocated during the block within a budget, and measures it.

    On the CPU a pool (csrc/memory/pool.cpp) reuses memory that is freed during the block. Each chunk frees its
    activations, and the next chunk asks for as much. The C library reuses freed memory unreliably: on a ResNet-50 its
    heap grew to three times what was alive. Pages that go back to the system come back zeroed, which takes time. A
    request of this thread beyond the budget fails in the pool. There is no pool without the compiled operators, or
    where the user has replaced PyTorch's CPU allocator. Several threads may be inside such blocks at the same time. On
    CUDA, an operation of this thread fails if it leaves more allocated than an explicit budget allows.

    Raises:
        IgfastMemoryError: memory ran out in the block.
    """
    allowed = allowed_bytes(budget, device)
    use = MemoryUse(device, allowed, allowed)
    with _SCOPES.get(device.type, _unlimited_scope)(device, use, budget is not None):
        try:
            yield use
        except Exception as error:  # of allocations other than for path points: accumulators, layers' values
            if isinstance(error, IgfastMemoryError) or not is_out_of_memory(error):
                raise
            raise IgfastMemoryError(f"the attribution does not fit in the memory of {device}: {error}") from error


@contextmanager
def _unlimited_scope(device: torch.device, use: MemoryUse, is_explicit: bool) -> Iterator[None]:
    if is_explicit:
        warn(f"memory_budget cannot be kept on {device.type}: chunks are as large as without it")
        use.allowed = use.for_tensors = None
    yield


@contextmanager
def _host_scope(device: torch.device, use: MemoryUse, is_explicit: bool) -> Iterator[None]:
    pool = importlib.import_module("igfast._C") if kernels_loaded() else None
    if pool is not None and is_explicit:
        pool.empty_host_pool()  # free pages of an earlier call would count against the budget
    if pool is None:
        with _unlimited_scope(device, use, is_explicit):
            yield
        return
    outer, was_paused = pool.set_host_pool_limit(-1), pool.pause_host_pool(False)
    began, is_inside = time.monotonic(), False
    try:
        is_inside = pool.enter_host_pool()
        with _in_pool(pool, use, is_explicit) if is_inside else _unlimited_scope(device, use, is_explicit):
            yield
    finally:  # in steps of one call, as an interrupt may come between any two
        try:
            pool.set_host_pool_limit(outer)
        finally:
            try:
                pool.pause_host_pool(was_paused)
            finally:
                users = pool.leave_host_pool() if is_inside else 1
        seconds = time.monotonic() - began
        if is_inside and seconds > _TRIM_AFTER_SECONDS:
            give_back_freed_blocks()
        elif users == 0:
            pool.empty_host_pool(kept=0 if seconds > _RETURN_ALL_AFTER_SECONDS else _KEPT_BYTES)


@contextmanager
def _in_pool(pool: Any, use: MemoryUse, is_explicit: bool) -> Iterator[None]:
    """Sets this thread's limit in the pool, which the caller puts back, and counts what the block takes."""
    held, before = pool.host_pool_bytes(), pool.host_pool_bytes_in_use()
    highest, reserved = before, 0

    def restart_peak() -> None:
        nonlocal highest
        highest = max(highest, pool.restart_host_pool_peak())

    @contextmanager
    def for_results(n_bytes: int) -> Iterator[None]:
        nonlocal reserved
        reserved += n_bytes
        pool.count_in_host_pool(n_bytes)
        if use.for_tensors is not None:
            use.for_tensors = max(0, use.for_tensors - n_bytes)
        paused = pool.pause_host_pool(True)
        try:
            yield
        finally:
            pool.pause_host_pool(paused)

    def release(n_bytes: int) -> None:
        nonlocal reserved
        reserved -= n_bytes
        pool.count_in_host_pool(-n_bytes)
        if use.for_tensors is not None:
            use.for_tensors += n_bytes

    use.restart_peak, use.for_results, use.release = restart_peak, for_results, release
    use.peak_of_tensors = lambda: max(0, pool.host_pool_peak_in_use() - before - reserved)
    use.peak = lambda: max(pool.host_pool_peak() - held, highest - before, pool.host_pool_peak_in_use() - before)
    if use.allowed is not None and is_explicit:
        use.for_tensors = use.allowed - min(use.allowed // 8, _UNCOUNTED_BYTES)
    pool.set_host_pool_limit(-1 if use.for_tensors is None else held + use.for_tensors)
    try:
        yield
    finally:
        try:
            peak, of_tensors = use.peak(), use.peak_of_tensors()
            use.peak, use.peak_of_tensors = lambda: peak, lambda: of_tensors
        finally:
            pool.count_in_host_pool(-reserved)


@contextmanager
def _cuda_scope(device: torch.device, use: MemoryUse, is_explicit: bool) -> Iterator[None]:
    def held() -> tuple[int, int]:
        counts = torch.cuda.memory_stats_as_nested_dict(device)["allocated_bytes"]["all"]
        return counts["current"], counts["peak"]

    try:
        before, highest = held()  # a fifth of the time of `max_memory_allocated`, which a small call waits for
    except RuntimeError:  # of an allocator that the user put in the place of PyTorch's: it counts nothing
        with _unlimited_scope(device, use, is_explicit):
            yield
        return

    def peak() -> int | None:  # None unless the peak is the process's highest: the user's statistics are not reset
        now = held()[1]
        return now - before if now > highest else None

    use.peak = use.peak_of_tensors = peak
    watch: AbstractContextManager[object] = nullcontext()
    if is_explicit and use.allowed is not None:
        watch = _watch(use, held, before)
    try:
        with watch:
            yield
    finally:
        taken, of_tensors = use.peak(), use.peak_of_tensors()
        use.peak, use.peak_of_tensors = lambda: taken, lambda: of_tensors


def _watch(use: MemoryUse, held: Callable[[], tuple[int, int]], before: int) -> AllocationWatch:
    """Returns a watch that keeps to `use.allowed` and measures the peaks of `use`."""
    allowed = use.allowed or 0
    watch, highest, base = AllocationWatch(held, before + allowed), before, before

    def restart_peak() -> None:
        nonlocal highest, base
        highest, base = max(highest, watch.highest), held()[0]
        watch.highest, use.for_tensors = base, allowed - (base - before)  # accumulators, say, are allocated by now

    use.restart_peak, use.is_watched = restart_peak, True
    use.peak_of_tensors = lambda: watch.highest - base
    use.peak = lambda: max(highest, watch.highest) - before
    return watch


_SCOPES = {"cpu": _host_scope, "cuda": _cuda_scope}
