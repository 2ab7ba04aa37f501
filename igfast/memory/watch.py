"""Keeps what an allocator of PyTorch holds within a limit, by a look after each operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class AllocationWatch(TorchDispatchMode):
    """Makes operations fail that leave more allocated than a limit, or needed more meanwhile.

    The mode is active in its own thread, and in the backward passes that this thread starts. An operation is not
    stopped: it can exceed the limit until it ends. What it takes meanwhile and frees itself is seen where that is a new
    peak of the process.

    Args:
        held: returns the bytes that the allocator holds, and its peak so far.
        limit: the most bytes that it may hold.

    Attributes:
        highest: the most bytes that were seen, since `highest` was last set.
    """

    supports_higher_order_operators = True  # torch.cond, flex_attention

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Lets torch.compile work on under this mode; it would mark the model's code to be run without it for good."""
        return True

    def __init__(self, held: Callable[[], tuple[int, int]], limit: int) -> None:
        super().__init__()
        self._held, self._limit = held, limit
        self.highest, self._peak = held()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        now, peak = self._held()
        if peak > self._peak:  # a new peak of the process was reached within this operation
            now = self._peak = peak
        self.highest = max(self.highest, now)
        if now > self._limit:
            more = f"{(now - self._limit) / 2**20:.1f} MiB more than memory_budget allows"
            raise torch.OutOfMemoryError(f"after {func}, {more} were allocated")
        return result
