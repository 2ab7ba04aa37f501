"""The user's model: left as it was found, and what is remembered of it."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import nn

_Value = TypeVar("_Value")


def module_of(forward_func: Callable[..., Any]) -> nn.Module | None:
    """The module behind a forward function: itself, or what a bound method or functools.partial holds."""
    while isinstance(forward_func, functools.partial):
        forward_func = forward_func.func
    owner = forward_func if isinstance(forward_func, nn.Module) else getattr(forward_func, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


class Remembered(Generic[_Value]):
    """What calls found out about a model, for later calls with inputs of the same kind; forgotten with the model.

    Safe to share between threads.
    """

    def __init__(self) -> None:
        self._values: weakref.WeakKeyDictionary[object, dict[Hashable, _Value]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def get(self, forward_func: Callable[..., Any], kind: Hashable) -> _Value | None:
        """The value for inputs of this kind, if there is one."""
        with self._lock, contextlib.suppress(TypeError):
            return self._values.get(module_of(forward_func) or forward_func, {}).get(kind)
        return None

    def put(self, forward_func: Callable[..., Any], kind: Hashable, value: _Value) -> None:
        """Remembers a value, unless the function is one that cannot be hashed or weakly referred to."""
        with self._lock, contextlib.suppress(TypeError):
            self._values.setdefault(module_of(forward_func) or forward_func, {})[kind] = value


@contextmanager
def buffers_restored(forward_func: Callable[..., Any]) -> Iterator[None]:
    """Puts back the buffers that a forward pass in training mode updates, such as running statistics.

    Only modules in training mode are looked at, so a model in evaluation mode costs nothing. Draws that a model makes
    from the random generator (dropout in training mode) are its own and are not undone: averaging several calls relies
    on them.
    """
    module = module_of(forward_func)
    saved = [
        (owner, name, buffer, buffer.clone())
        for owner in (module.modules() if module is not None else ())
        if owner.training
        for name, buffer in owner._buffers.items()
        if buffer is not None and not buffer.is_inference() and not buffer.is_meta
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in saved:
                owner._buffers[name] = buffer
                # One that was not written may be part of a graph of the user's, and is left alone. (Its version counter
                # does not tell: batch norm writes its statistics without counting.)
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
