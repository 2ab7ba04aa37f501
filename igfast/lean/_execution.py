"""One call's use of lean execution: whether it is on, and the plain rerun when a model does not take it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

from igfast.errors import LeanError, warn
from igfast.ops._load import kernels_loaded

_Result = TypeVar("_Result")


class LeanExecution:
    """Lean execution of one attribution.

    Args:
        off_because: why it is off from the start; empty if it is on.
        required: raise LeanError where it would fall back to plain execution.

    Attributes:
        off_because: why it is off; empty while it is on.
        failed_because: why the model does not take it; empty unless that was found out.
    """

    def __init__(self, off_because: str, required: bool = False) -> None:
        if off_because and required:
            raise LeanError(f"lean=True, but lean execution is not possible: {off_because}")
        self.off_because = off_because
        self.failed_because = ""
        self._required = required
        self._mode: AbstractContextManager[Any] = nullcontext() if off_because else _new_mode()

    def active(self) -> AbstractContextManager[Any]:
        """To be entered around the forward pass."""
        return nullcontext() if self.off_because else self._mode

    def attempt(self, evaluate: Callable[[], _Result]) -> _Result:
        """Evaluates a chunk; if that raises what plain execution does not raise, plainly, from then on.

        Raises:
            LeanError: it failed in lean execution only, and that is required.
        """
        if self.off_because:
            return evaluate()
        random_state = torch.get_rng_state()
        try:
            return evaluate()
        except Exception as error:  # whatever a model raises when something in it does not fit
            failure = error
        torch.set_rng_state(random_state)
        because = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
        self.off_because = because
        try:
            result = evaluate()
        except BaseException:
            self.off_because = ""  # it was not lean execution that failed
            raise
        self.failed_because = because
        if self._required:
            raise LeanError(f"lean=True, but the model does not take lean execution: {because}") from failure
        warn(
            f"lean execution does not fit this model ({because}), so it runs plainly, which takes more memory. "
            "Pass lean=False to IntegratedGradients if you know that beforehand"
        )
        return result


def _new_mode() -> AbstractContextManager[Any]:
    from igfast.lean._mode import LeanMode  # its operators have to be loaded first, see why_not

    return LeanMode()


def why_not(forward_func: Callable[..., Any], module: nn.Module | None) -> str:
    """Why lean execution cannot be used for a forward function; empty if it can.

    Args:
        forward_func: the function that is attributed.
        module: the module behind it, if there is one.
    """
    if not kernels_loaded():
        return "igfast's compiled operators are not built"
    if hasattr(forward_func, "_torchdynamo_orig_callable"):
        return "forward_func is compiled (torch.compile)"
    for part in module.modules() if module is not None else ():
        if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
            return f"{type(part).__name__} is compiled (torch.compile)"
    return ""
