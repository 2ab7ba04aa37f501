"""Checks igfast's own options of the constructors, which say how a model is run, once."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from igfast.errors import ArgumentError
from igfast.memory.budget import parse_memory_budget
from igfast.memory.scope import MemoryUse, memory_scope

Lean = Literal["auto", True, False]


@dataclass(frozen=True)
class Options:
    """How a model is run: `lean`, `memory_budget` and `show_progress` as in `igfast.IntegratedGradients`.

    Raises ArgumentError or ArgumentTypeError if an option is not one of its values.
    """

    lean: Lean = "auto"
    memory_budget: int | float | str | None = None
    show_progress: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.lean, bool) and self.lean != "auto":
            raise ArgumentError(f'lean must be "auto", True or False; got {self.lean!r}')
        parse_memory_budget(self.memory_budget)

    def memory(self, device: torch.device) -> AbstractContextManager[MemoryUse]:
        """Returns a context in which a call may take the memory that the budget allows."""
        return memory_scope(device, parse_memory_budget(self.memory_budget))
