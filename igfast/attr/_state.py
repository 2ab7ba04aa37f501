"""Leaves the user's model as it was found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def module_of(forward_func: Callable[..., Any]) -> nn.Module | None:
    """The module behind a forward function: itself, or what a bound method or functools.partial holds."""
    while isinstance(forward_func, functools.partial):
        forward_func = forward_func.func
    owner = forward_func if isinstance(forward_func, nn.Module) else getattr(forward_func, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


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
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in saved:
                owner._buffers[name] = buffer.copy_(value)
