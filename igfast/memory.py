"""Asks the machine about memory; nothing else in igfast does."""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import Any

import psutil
import torch

from igfast.errors import ArgumentError, ArgumentTypeError, IgfastError, IgfastMemoryError, warn
from igfast.ops._load import kernels_loaded

MemoryBudget = int | float | None

_BUDGETS = 'bytes, a size such as "2GiB", a fraction of the device\'s memory (a float up to 1.0), or None'
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b|b)", re.IGNORECASE)
_UNITS = {"b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "bad_alloc")
_FREE_SHARE = 0.9  # of the free memory, for a call without a budget
_UNCOUNTED_BYTES = 2**27  # what code and libraries' scratch space take of a budget beside tensors; an eighth at most
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_POLL_SECONDS = 0.002
_TRIM_AFTER_SECONDS = 0.3  # giving memory back takes up to 40 ms in a large process; short calls have little to give
_RETURN_ALL_AFTER_SECONDS = 0.1  # the page faults of the next call are up to a fifth of a shorter one
_KEPT_BYTES = 2**25  # at most, after such a call
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc


def available_bytes() -> int:
    """Bytes of main memory that a process can still get: the machine's, or that of a cgroup which allows less."""
    free = int(psutil.virtual_memory().available)
    for group in _cgroups():
        limit, used = _number(group / group.limit), _number(group / group.used)
        if limit is not None and used is not None:
            free = min(free, limit - used + _reclaimable_bytes(group / "memory.stat"))
    return max(free, 0)


def _reclaimable_bytes(statistics: Path) -> int:
    """What a cgroup is charged for that the kernel gives up when memory is short: cached files."""
    lines = statistics.read_text().splitlines() if statistics.exists() else []
    fields = dict(line.split(maxsplit=1) for line in lines)
    return sum(int(fields.get(name, 0)) for name in ("active_file", "inactive_file", "slab_reclaimable"))


@dataclass(frozen=True)
class _Cgroup:
    """The folder of a control group, and its files."""

    folder: Path
    limit: str
    used: str

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def _cgroups() -> list[_Cgroup]:
    """The control groups that limit this process's memory, of version 1 or 2: its own and those around it."""
    found = []
    lines = _OWN_CGROUPS.read_text().splitlines() if _OWN_CGROUPS.exists() else ["0::/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = _CGROUP, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = _CGROUP / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        own = root / path.strip("/")
        found += [_Cgroup(folder, *names) for folder in (own, *own.parents) if folder == root or root in folder.parents]
    return found


def _number(path: Path) -> int | None:
    """What a file of a control group holds; None if it is not there or says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _cgroup_limit() -> int | None:
    """The least that a control group of the process allows; None if none sets a limit."""
    limits = (_number(group / group.limit) for group in _cgroups())
    return min((limit for limit in limits if limit is not None), default=None)


def resident_bytes() -> int:
    """Bytes of main memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, PyTorch's on any device, or that of a library below."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, IgfastError):
        return False  # whatever it quotes
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def parse_memory_budget(budget: object) -> MemoryBudget:
    """Checks a budget as the caller passed it.

    Raises:
        ArgumentError: not a positive number of bytes, a fraction up to 1, or a size such as "2GiB".
        ArgumentTypeError: not a number, a string or None.
    """
    if isinstance(budget, str):
        match = _SIZE.fullmatch(budget.strip())
        if match and float(match[1]) > 0:
            return int(float(match[1]) * _UNITS[match[2].lower()])
        if budget.strip().isdecimal() and int(budget) > 0:
            return int(budget)
    elif isinstance(budget, bool) or not isinstance(budget, (Integral, float, NoneType)):
        raise ArgumentTypeError(f"memory_budget must be {_BUDGETS}; got {type(budget).__name__}")
    elif isinstance(budget, Integral) and int(budget) > 0:
        return int(budget)
    elif budget is None or (isinstance(budget, float) and 0 < budget <= 1):
        return budget
    raise ArgumentError(f"memory_budget must be {_BUDGETS}; got {budget!r}")


def allowed_bytes(budget: MemoryBudget, device: torch.device) -> int | None:
    """What a budget comes to on a device now; None where there is no telling.

    No budget is all that is free, less a tenth.
    """
    if isinstance(budget, int):
        return min(budget, sys.maxsize // 2)  # of 64 bits with what there is already
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    elif device.type == "cpu":
        free, total = _host_memory(int(time.monotonic()))
    else:
        return None
    return int(free * _FREE_SHARE) if budget is None else int(total * budget)


@functools.lru_cache(maxsize=1)
def _host_memory(second: int) -> tuple[int, int]:  # noqa: ARG001
    """Free and total bytes of main memory; asked once a second at most, since asking takes as long as a small call."""
    return available_bytes(), min(psutil.virtual_memory().total, _cgroup_limit() or sys.maxsize)


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
def memory_lent(device: torch.device, budget: MemoryBudget) -> Iterator[MemoryUse]:
    """Keeps what is allocated during the block within a budget, and measures it.

    On the CPU, PyTorch keeps what is freed during the block for later requests, and it is given back at the end. A
    chunk frees its activations, and the next one asks for as much. The C library neither hands it out again reliably
    (its heap grew to three times of what was alive on a ResNet-50) nor for free: what goes back to the system comes
    back zeroed page by page. See csrc/host_pool.cpp; a request of this thread beyond the budget fails there. Without
    the compiled operators, or where the user has replaced PyTorch's CPU allocator, none of this happens. Threads may be
    in it at the same time.

    On CUDA only the growth of chunks heeds the budget.

    Raises:
        IgfastMemoryError: memory ran out in the block.
    """
    allowed = allowed_bytes(budget, device)
    use = MemoryUse(device, allowed, allowed)
    with _LENDERS.get(device.type, _lent_unlimited)(device, use, budget is not None):
        try:
            yield use
        except Exception as error:  # what needs memory beside path points: accumulators, layers' values
            if isinstance(error, IgfastMemoryError) or not is_out_of_memory(error):
                raise
            raise IgfastMemoryError(f"the attribution does not fit in the memory of {device}: {error}") from error


@contextmanager
def _lent_unlimited(device: torch.device, use: MemoryUse, is_explicit: bool) -> Iterator[None]:
    if is_explicit:
        warn(f"memory_budget cannot be kept on {device.type}: chunks are as large as without it")
        use.allowed = use.for_tensors = None
    yield


@contextmanager
def _lent_by_host(device: torch.device, use: MemoryUse, is_explicit: bool) -> Iterator[None]:
    pool = importlib.import_module("igfast._C") if kernels_loaded() else None
    if pool is not None and is_explicit:
        pool.empty_host_pool()  # what an earlier call left counts
    if pool is None or not pool.enter_host_pool():
        with _lent_unlimited(device, use, is_explicit):
            yield
        return
    began, held, before = time.monotonic(), pool.host_pool_bytes(), pool.host_pool_bytes_in_use()
    highest = before

    def restart_peak() -> None:
        """Keeps the peak so far."""
        nonlocal highest
        highest = max(highest, pool.restart_host_pool_peak())

    reserved = 0

    def reserve(n_bytes: int) -> None:
        """Counts them in the peak, too."""
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
def _lent_by_cuda(device: torch.device, use: MemoryUse, is_explicit: bool) -> Iterator[None]:
    if is_explicit:
        warn("memory_budget is not enforced on CUDA: chunks stop growing below it, but the first may exceed it")
    before, highest = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)

    def peak() -> int | None:
        """Known where it is the highest of the process: the user's statistics are not reset."""
        now = torch.cuda.max_memory_allocated(device)
        return now - before if now > highest else None

    use.peak = use.peak_of_tensors = peak
    try:
        yield
    finally:
        taken = peak()
        use.peak = use.peak_of_tensors = lambda: taken


_LENDERS = {"cpu": _lent_by_host, "cuda": _lent_by_cuda}


def free_memory(device: torch.device) -> None:
    """After memory ran out: frees what is in reference cycles or kept for later."""
    gc.collect()
    give_back_freed_blocks()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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
