"""Memory for the duration of one call: kept within a budget, measured, and given back."""

from __future__ import annotations

import functools
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
from igfast.ops._load import kernels_loaded

_UNCOUNTED_BYTES = 2**27  # what code and libraries' scratch space take of a budget beside tensors; an eighth at most
_TRIM_AFTER_SECONDS = 0.3  # giving memory back takes up to 40 ms in a large process; short calls have little to give
_RETURN_ALL_AFTER_SECONDS = 0.1  # the page faults of the next call are up to a fifth of a shorter one
_KEPT_BYTES = 2**25  # at most, after such a call


@dataclass
class MemoryUse:
    """What an attribution may take and takes, in bytes over what there was when it began.

    Attributes:
        device: where the memory is.
        allowed: what the budget comes to; None where there is no telling.
        for_tensors: what of that is for tensors; the rest is for code and libraries' scratch space.
        peak: returns the most that PyTorch's allocator held so far; None where it is not measured. On the CPU,
            attributions in other threads at the same time are in it.
        peak_of_tensors: the same without what is kept for later tensors because that is cheap, since `restart_peak`.
        restart_peak: begins `peak_of_tensors` anew.
        for_results: within, memory is taken that outlives the call.
        reserve: counts so many bytes of that against the budget.
    """

    device: torch.device
    allowed: int | None
    for_tensors: int | None = None
    peak: Callable[[], int | None] = lambda: None
    peak_of_tensors: Callable[[], int | None] = lambda: None
    restart_peak: Callable[[], object] = lambda: None
    for_results: Callable[[], AbstractContextManager[object]] = nullcontext
    reserve: Callable[[int], object] = lambda n_bytes: None  # noqa: ARG005


@contextmanager
def memory_scope(device: torch.device, budget: MemoryBudget) -> Iterator[MemoryUse]:
    """Keeps what is allocated during the block within a budget, and measures it.

    On the CPU, PyTorch keeps what is freed during the block for later requests, and it is given back at the end. A
    chunk frees its activations, and the next one asks for as much. The C library neither hands it out again reliably
    (its heap grew to three times of what was alive on a ResNet-50) nor for free: what goes back to the system comes
    back zeroed page by page. See csrc/memory/pool.cpp; a request of this thread beyond the budget fails there. Without
    the compiled operators, or where the user has replaced PyTorch's CPU allocator, none of this happens. Threads may be
    in it at the same time.

    On CUDA only the growth of chunks heeds the budget.

    Raises:
        IgfastMemoryError: memory ran out in the block.
    """
    allowed = allowed_bytes(budget, device)
    use = MemoryUse(device, allowed, allowed)
    with _SCOPES.get(device.type, _unlimited_scope)(device, use, budget is not None):
        try:
            yield use
        except Exception as error:  # what needs memory beside path points: accumulators, layers' values
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
        pool.empty_host_pool()  # what an earlier call left counts
    if pool is None or not pool.enter_host_pool():
        with _unlimited_scope(device, use, is_explicit):
            yield
        return
    began, held, before = time.monotonic(), pool.host_pool_bytes(), pool.host_pool_bytes_in_use()
    highest = before

    def restart_peak() -> None:
        nonlocal highest
        highest = max(highest, pool.restart_host_pool_peak())

    reserved = 0

    def reserve(n_bytes: int) -> None:
        nonlocal reserved
        reserved += n_bytes
        if use.for_tensors is not None:
            use.for_tensors = max(0, use.for_tensors - n_bytes)
            pool.set_host_pool_limit(held + use.for_tensors)

    use.reserve = reserve
    use.restart_peak, use.for_results = restart_peak, functools.partial(_pool_paused, pool)
    use.peak_of_tensors = lambda: max(0, pool.host_pool_peak_in_use() - before)
    use.peak = lambda: reserved + max(pool.host_pool_peak() - held, highest - before, use.peak_of_tensors() or 0)
    if use.allowed is not None and is_explicit:
        use.for_tensors = use.allowed - min(use.allowed // 8, _UNCOUNTED_BYTES)
    outer = pool.set_host_pool_limit(-1 if use.for_tensors is None else held + use.for_tensors)
    try:
        yield
    finally:
        peak, of_tensors = use.peak(), use.peak_of_tensors()
        use.peak, use.peak_of_tensors = lambda: peak, lambda: of_tensors
        pool.set_host_pool_limit(outer)
        users, seconds = pool.leave_host_pool(), time.monotonic() - began
        if seconds > _TRIM_AFTER_SECONDS:
            give_back_freed_blocks()
        elif users == 0:
            pool.empty_host_pool(kept=0 if seconds > _RETURN_ALL_AFTER_SECONDS else _KEPT_BYTES)


@contextmanager
def _pool_paused(pool: Any) -> Iterator[None]:
    before = pool.pause_host_pool(True)
    try:
        yield
    finally:
        pool.pause_host_pool(before)


@contextmanager
def _cuda_scope(device: torch.device, use: MemoryUse, is_explicit: bool) -> Iterator[None]:
    if is_explicit:
        warn("memory_budget is not enforced on CUDA: chunks stop growing below it, but the first may exceed it")
    before, highest = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)

    def peak() -> int | None:  # known where it is the highest of the process: the user's statistics are not reset
        now = torch.cuda.max_memory_allocated(device)
        return now - before if now > highest else None

    use.peak = use.peak_of_tensors = peak
    try:
        yield
    finally:
        taken = peak()
        use.peak = use.peak_of_tensors = lambda: taken


_SCOPES = {"cpu": _host_scope, "cuda": _cuda_scope}
