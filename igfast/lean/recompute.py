"""Activation checkpointing: repeated blocks of a model save only their inputs and run again in the backward pass.

`torch.utils.checkpoint` runs the blocks. Calls take about a third longer, so this is for lack of memory only.

Source: Chen, Xu, Zhang, Guestrin 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

_lock = threading.Lock()
_recomputing: Counter[nn.Module] = Counter()  # how many threads recompute each block
_own_forwards: dict[nn.Module, Callable[..., Any] | None] = {}  # each instance's own `forward`, if it has one
_local = threading.local()

Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


def repeated_blocks(module: nn.Module | None) -> list[nn.Module]:
    """Returns the outermost modules with submodules that have a sibling of the same class: layers, stages, blocks."""
    found: list[nn.Module] = []
    for parent in module.children() if module is not None else ():
        found.extend(repeated_blocks(parent))
    children = _composite_children(module)
    kinds = Counter(map(type, children))
    repeated = [child for child in children if kinds[type(child)] > 1]
    if not repeated:
        return found
    inside = {part for block in repeated for part in block.modules()}
    return repeated + [block for block in found if block not in inside]


def _composite_children(module: nn.Module | None) -> list[nn.Module]:
    children = module.children() if module is not None else ()
    return [child for child in children if next(child.children(), None) is not None]


@contextmanager
def recomputed(blocks: list[nn.Module], contexts: Contexts) -> Iterator[None]:
    """Checkpoints this thread's calls of `blocks`, so that the backward pass recomputes them.

    Args:
        blocks: the modules; each gets an instance attribute `forward` until no thread needs it.
        contexts: returns the contexts of the forward pass and of the recomputation.
    """
    with _lock:
        for block in blocks:
            if _recomputing[block] == 0:
                _own_forwards[block] = block.__dict__.get("forward")
                block.forward = _recomputing_forward(block.forward)
            _recomputing[block] += 1
    outer = getattr(_local, "contexts", None)
    _local.contexts = contexts
    try:
        yield
    finally:
        _local.contexts = outer
        with _lock:
            for block in blocks:
                _recomputing[block] -= 1
                if _recomputing[block] == 0:
                    del _recomputing[block]
                    _restore(block, _own_forwards.pop(block))


def _recomputing_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        contexts = getattr(_local, "contexts", None)
        if contexts is None:
            return forward(*args, **kwargs)
        from torch.utils.checkpoint import checkpoint  # imported late: it imports much and is rarely needed

        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


def _restore(block: nn.Module, own_forward: Callable[..., Any] | None) -> None:
    del block.__dict__["forward"]
    if own_forward is not None:
        block.forward = own_forward
