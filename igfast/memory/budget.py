"""Parses memory budgets as callers write them, and converts them to bytes."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import time
from numbers import Integral
from types import NoneType

import torch

from igfast.errors import ArgumentError, ArgumentTypeError
from igfast.memory.machine import available_bytes, total_bytes

MemoryBudget = int | float | None

_BUDGETS = 'bytes, a size such as "2GiB", a fraction of the device\'s memory (a float up to 1.0), or None'
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b|b)", re.IGNORECASE)
_UNITS = {"b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_FREE_SHARE = 0.9  # of the free memory, for a call without a budget


def parse_memory_budget(budget: object) -> MemoryBudget:
    """Checks a budget as the caller passed it; returns bytes, a fraction of the device's memory, or None.

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
    """Returns the bytes that a budget allows on a device now (without one, 90 % of what is free); None if unknown."""
    if isinstance(budget, int):
        return min(budget, sys.maxsize // 2)  # bytes in use are added later, which must fit in 64 bits
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        with contextlib.suppress(RuntimeError):  # an allocator that the user put in the place of PyTorch's
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    elif device.type == "cpu":
        free, total = _host_memory(int(time.monotonic()))
    else:
        return None
    return int(free * _FREE_SHARE) if budget is None else int(total * budget)


@functools.lru_cache(maxsize=1)
def _host_memory(second: int) -> tuple[int, int]:  # noqa: ARG001
    """Returns free and total bytes of main memory, read once a second: reading takes as long as a small call."""
    return available_bytes(), total_bytes()
