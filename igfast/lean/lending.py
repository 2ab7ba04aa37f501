"""Runs a module's `forward` in another way for as long as one thread asks for it."""

from __future__ import annotations

import copy
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

from torch import nn

Act = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Runs a module: takes its own `forward`, and the positional and keyword arguments of the call."""

_lock = threading.Lock()
os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]  # a thread may have held it
_borrowers: Counter[nn.Module] = Counter()  # how many threads run each module in another way
_own_forwards: dict[nn.Module, Callable[..., Any] | None] = {}  # each instance's own `forward`, if it has one
_local = threading.local()


@contextmanager
def acting(acts: Mapping[nn.Module, Act]) -> Iterator[None]:
    """Runs this thread's calls of modules by the given functions during the block; inner blocks add to outer ones.

    Each module gets an instance attribute `forward` until no thread needs it, and its hooks run as ever.
    """
    outer = getattr(_local, "acts", {})
    with ExitStack() as stack:
        for module in acts:
            _borrow(module)
            stack.callback(_give_back, module)
        _local.acts = {**outer, **acts}
        stack.callback(setattr, _local, "acts", outer)
        yield


def _borrow(module: nn.Module) -> None:
    with _lock:
        if _borrowers[module] == 0:
            own, run = module.__dict__.get("forward"), _Chosen(module, module.forward)
            module.__dict__["forward"] = run
            _own_forwards[module] = own
        _borrowers[module] += 1


def _give_back(module: nn.Module) -> None:
    with _lock:
        if _borrowers[module] > 1:
            _borrowers[module] -= 1
            return
        own = _own_forwards.get(module)
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = own
        del _borrowers[module], _own_forwards[module]


def own_forward(module: nn.Module) -> Callable[..., Any] | None:
    """Returns the `forward` that a module itself was given, in the place of its class's; None if it was given none."""
    found = module.__dict__.get("forward")
    return _own_forwards.get(module) if isinstance(found, _Chosen) else found


class _Chosen:
    """A lent `forward`. A copy or a pickle of the module, made by another thread, gets the module's own instead."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._module, self._forward = module, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        act = getattr(_local, "acts", {}).get(self._module)
        return self._forward(*args, **kwargs) if act is None else act(self._forward, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._forward, memo)  # of a bound method, one that is bound to the module's copy

    def __reduce__(self) -> tuple[Any, ...]:
        return _bound, (getattr(self._forward, "__func__", self._forward), getattr(self._forward, "__self__", None))


def _bound(function: Callable[..., Any], owner: Any) -> Callable[..., Any]:
    return function if owner is None else MethodType(function, owner)
