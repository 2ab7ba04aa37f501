"""Hooks on the user's layers for the time of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def hooked(layers: Sequence[nn.Module], hooks: Sequence[Callable[..., Any]], *, before: bool = False) -> Iterator[None]:
    """Puts a hook on each layer for the block, after its forward pass or `before` it.

    The hooks are found again by themselves, not by handles: an interrupt may come before a handle is kept.
    """
    try:
        for layer, hook in zip(layers, hooks, strict=True):
            (layer.register_forward_pre_hook if before else layer.register_forward_hook)(hook)
        yield
    finally:
        try:
            _unhook(layers, hooks)
        except BaseException:  # Ctrl-C, say: nothing would do the rest later
            _unhook(layers, hooks)
            raise


def _unhook(layers: Sequence[nn.Module], hooks: Sequence[Callable[..., Any]]) -> None:
    for layer, ours in zip(layers, hooks, strict=True):
        for table in (layer._forward_pre_hooks, layer._forward_hooks):
            for number in [number for number, hook in list(table.items()) if hook is ours]:
                table.pop(number, None)
