"""Runs a module's `forward` in another way for as long as one thread asks for it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    with _lock:
        for module in acts:
            if _borrowers[module] == 0:
                _own_forwards[module] = module.__dict__.get("forward")
                module.forward = _chosen(module, module.forward)
            _borrowers[module] += 1
    outer = getattr(_local, "acts", {})
    _local.acts = {**outer, **acts}
    try:
        yield
    finally:
        _local.acts = outer
        with _lock:
            for module in acts:
                _borrowers[module] -= 1
                if _borrowers[module] == 0:
                    del _borrowers[module]
                    _give_back(module, _own_forwards.pop(module))


def _chosen(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        act = getattr(_local, "acts", {}).get(module)
        return forward(*args, **kwargs) if act is None else act(forward, args, kwargs)

    return run


def _give_back(module: nn.Module, own_forward: Callable[..., Any] | None) -> None:
    del module.__dict__["forward"]
    if own_forward is not None:
        module.forward = own_forward
