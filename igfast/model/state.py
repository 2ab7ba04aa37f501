"""Restores the buffers of the user's model, and keeps facts about models between calls."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

_Value = TypeVar("_Value")
_MOST_KINDS = 64
_numbers: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_next_number = itertools.count()


def module_of(forward_func: Callable[..., Any]) -> nn.Module | None:
    """Returns the module that a forward function is, or that a bound method or functools.partial holds; or None."""
    while isinstance(forward_func, functools.partial):
        forward_func = forward_func.func
    owner = forward_func if isinstance(forward_func, nn.Module) else getattr(forward_func, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def modules_behind(forward_func: Callable[..., Any]) -> list[nn.Module]:
    """Returns the modules that a forward function is seen to use: its own, or those that its code can reach.

    These are modules in its global names, closure, default arguments and fixed arguments. Of the object whose method it
    is, and of objects in those places, attributes are looked at too. Functions in those places are not followed.
    """
    fixed: list[Any] = []
    while isinstance(forward_func, functools.partial):
        fixed += [*forward_func.args, *forward_func.keywords.values()]
        forward_func = forward_func.func
    own = module_of(forward_func)
    if own is not None:
        values = [own, *fixed]
    elif not hasattr(forward_func, "__code__"):  # an object that can be called
        values = [*fixed, *_attributes_of(forward_func).values()]
    else:
        names, reached = forward_func.__code__.co_names, [*fixed, *_reached_by(forward_func)]
        named = [value for one in reached for name, value in _attributes_of(one).items() if name in names]
        values = [*reached, *named, *_attributes_of(getattr(forward_func, "__self__", None)).values()]
    return list(dict.fromkeys(value for value in values if isinstance(value, nn.Module)))


def floating_dtype(forward_func: Callable[..., Any]) -> torch.dtype | None:
    """Returns the dtype of the first floating parameter that a forward function is seen to use; None without one."""
    weights = (weight.dtype for module in modules_behind(forward_func) for weight in module.parameters())
    return next((dtype for dtype in weights if dtype.is_floating_point), None)


def _reached_by(function: Any) -> Iterator[Any]:
    """Yields what a function's global names, closure and defaults are."""
    yield from (function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__)
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing was assigned yet
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def _attributes_of(value: Any) -> dict[str, Any]:
    return {} if isinstance(value, (nn.Module, type)) else getattr(value, "__dict__", {})


def _lasting(module: Any) -> Any:
    """Returns a module, or what a module that is made for one call names in its place, as `kept_with`."""
    return getattr(module, "kept_with", module)


def number_of(module: nn.Module) -> int:
    """Returns a number that no other module has or had."""
    number = _numbers.get(module)
    if number is None:
        number = _numbers[module] = next(_next_number)
    return number


def lasting_parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yields a module and its parts; in the place of a module that is made for one call, what it names."""
    yield _lasting(module)
    yield from (part for part in module.modules() if part is not module)


def _holder(forward_func: Callable[..., Any]) -> Any:
    """Returns what facts are kept with: a partial call, as its arguments belong to it; else module or function."""
    if isinstance(forward_func, functools.partial):
        return forward_func
    return _lasting(module_of(forward_func)) or forward_func


class Remembered(Generic[_Value]):
    """Keeps what calls found out about a model for later calls with inputs of the same kind, while the model lives.

    Safe to share between threads. For each model, the last `_MOST_KINDS` kinds of inputs are kept.
    """

    def __init__(self) -> None:
        self._values: weakref.WeakKeyDictionary[object, OrderedDict[Hashable, _Value]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def get(self, forward_func: Callable[..., Any], kind: Hashable) -> _Value | None:
        """Returns the value for inputs of this kind, or None."""
        with self._lock, contextlib.suppress(TypeError, KeyError):
            kinds = self._values[_holder(forward_func)]
            kinds.move_to_end(kind)
            return kinds[kind]
        return None

    def put(self, forward_func: Callable[..., Any], kind: Hashable, value: _Value) -> None:
        """Keeps a value, unless the function cannot be hashed or weakly referenced."""
        with self._lock, contextlib.suppress(TypeError):
            kinds = self._values.setdefault(_holder(forward_func), OrderedDict())
            kinds[kind] = value
            kinds.move_to_end(kind)
            if len(kinds) > _MOST_KINDS:
                kinds.popitem(last=False)


@dataclass
class _Saved:
    """The buffers of a module in training mode, and how many calls are to leave them as they are."""

    buffers: list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]
    n_calls: int = 1


_saved: dict[int, _Saved] = {}  # by the id of the module, which running calls keep alive
_saved_lock = threading.Lock()


@contextmanager
def buffers_restored(forward_func: Callable[..., Any]) -> Iterator[None]:
    """Puts back the buffers that a forward pass in training mode updates, such as running statistics.

    Only modules in training mode are looked at. Where several threads attribute one model, the last thread puts back
    what the first one found. Random draws (dropout) are not undone, because averaging several calls relies on them.
    """
    modules = list(dict.fromkeys(map(_lasting, modules_behind(forward_func))))
    with _saved_lock:
        for module in modules:
            if id(module) in _saved:
                _saved[id(module)].n_calls += 1
            else:
                _saved[id(module)] = _Saved(_buffers_in_training(module))
    try:
        yield
    finally:
        with _saved_lock:
            for module in modules:
                saved = _saved[id(module)]
                saved.n_calls -= 1
                if saved.n_calls == 0:
                    del _saved[id(module)]
                    _put_back(saved)


def _buffers_in_training(module: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]:
    return [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        if owner.training
        for name, buffer in owner._buffers.items()
        if buffer is not None and not buffer.is_inference() and not buffer.is_meta
    ]


def _put_back(saved: _Saved) -> None:
    with torch.no_grad():
        for owner, name, buffer, value in saved.buffers:
            owner._buffers[name] = buffer
            # An unchanged buffer may be part of the user's graph, so nothing is written. (The version counter does
            # not tell: batch norm writes its statistics without counting.)
            if not torch.equal(buffer, value):
                buffer.copy_(value)
