"""Tells errors that a trial of a model must not take for the model's own."""

from __future__ import annotations

import functools
import signal
from types import CodeType
from typing import Any

from igfast.memory.recovery import is_out_of_memory


def must_pass(error: BaseException) -> bool:
    """Returns whether an error tells nothing of the model: memory ran out, or a signal's handler raised it."""
    return is_out_of_memory(error) or is_interrupt(error)


def is_interrupt(error: BaseException) -> bool:
    """Returns whether a time limit ran out, or a signal's handler raised an error or what the error came from."""
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, TimeoutError) or not isinstance(cause, Exception):
            return True
        place = cause.__traceback__
        while place is not None:
            if place.tb_frame.f_code in handlers:
                return True
            place = place.tb_next
        cause = cause.__context__
    return False


def _code_of(handler: Any) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    handler = getattr(handler, "__func__", handler)
    call = handler if hasattr(handler, "__code__") else vars(type(handler)).get("__call__")
    code = getattr(call, "__code__", None)
    return code if isinstance(code, CodeType) else None
