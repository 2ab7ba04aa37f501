"""Runs a module's `forward` in another way for as long as one thread asks for it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Act = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Runs a module: takes its own `forward`, and the positional and keyword arguments of the call."""

_lock = threading.Lock()
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
            own, run = module.__dict__.get("forward"), _chosen(module, module.forward)
            module.__dict__["forward"] = run
            _own_forwards[module] = own
        _borrowers[module] += 1


def _give_back(module: nn.Module) -> None:
    with _lock:
        _borrowers[module] -= 1
        if _borrowers[module] > 0:
            return
        del _borrowers[module]
        own = _own_forwards.pop(module)
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


def _chosen(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        act = getattr(_local, "acts", {}).get(module)
        return forward(*args, **kwargs) if act is None else act(forward, args, kwargs)

    return run
