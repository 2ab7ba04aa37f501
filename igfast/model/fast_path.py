"""Keeps PyTorch's transformer modules off their fast path, which they take in passes without a graph alone.

On it, padded positions get other values: zeros, or none at all. Gradients are those of the other path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from igfast.function_mode import FunctionMode
from igfast.lean.execution import why_no_modes
from igfast.model.modules import parts_behind, why_compiled

_MODULES = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


class NoFastPath(FunctionMode):
    """A mode that changes nothing: while any is active, the modules do not take the fast path in this thread."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


def has_fast_path(forward_func: Callable[..., Any]) -> bool:
    """Returns whether a forward function is seen to use such modules, and a mode changes nothing else."""
    uses = any(isinstance(part, _MODULES) for part in parts_behind(forward_func))
    return uses and not (why_compiled(forward_func) or why_no_modes())
