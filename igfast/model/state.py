"""Restores the buffers and hooks of the user's model."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._C import _len_torch_function_stack
from torch.overrides import _pop_mode
from torch.utils.hooks import RemovableHandle

from igfast.model.modules import is_igfasts, parts_behind

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)


@dataclass
class _Saved:
    """The buffers of a module without its parts, and how many calls are to leave them as they are.

    Attributes:
        buffers: for each buffer its name, the tensor, a copy of its values, and the tensor's version.
    """

    buffers: list[tuple[str, torch.Tensor, torch.Tensor, int]]
    n_calls: int = 0


_saved: dict[int, _Saved] = {}  # by the id of the module, which running calls keep alive
_saved_lock = threading.Lock()
os.register_at_fork(after_in_child=_saved_lock._at_fork_reinit)  # type: ignore[attr-defined]  # a thread may have held it


@contextmanager
def buffers_restored(forward_func: Callable[..., Any]) -> Iterator[None]:
    """Puts back the buffers that a forward pass in training mode updates, such as running statistics.

    Only modules in training mode are looked at. Where several threads attribute one model, the last thread puts back
    what the first one found. Random draws (dropout) are not undone, because averaging several calls relies on them.
    """
    with ExitStack() as stack:
        for part in parts_behind(forward_func):
            if getattr(part, "training", False) and part._buffers:  # frozen TorchScript has no mode
                _keep(part)
                stack.callback(_release, part)
        yield


@contextmanager
def undisturbed(forward_func: Callable[..., Any]) -> Iterator[None]:
    """Leaves the caller's inference mode, in which nothing can be differentiated; puts modes and buffers back."""
    n_modes = _len_torch_function_stack()
    try:
        with torch.inference_mode(False), torch.no_grad(), buffers_restored(forward_func):
            yield
    finally:  # of modes that an interrupt, just as they were entered, would leave behind
        for _ in range(_len_torch_function_stack() - n_modes):
            _pop_mode()


@contextmanager
def failure_leaves_no_hooks(forward_func: Callable[..., Any]) -> Iterator[None]:
    """Removes hooks that a forward function put on its model before it failed, as nothing else would then.

    Packages that put hooks on a model for one pass often remove them only after a pass that succeeds.
    """
    first_new = RemovableHandle.next_id
    try:
        yield
    except BaseException:
        for part in parts_behind(forward_func):
            for hooks in (getattr(part, name) for name in _HOOKS):
                for number in [n for n, hook in list(hooks.items()) if n >= first_new and not is_igfasts(hook)]:
                    hooks.pop(number, None)
        raise


def _keep(part: nn.Module) -> None:
    with _saved_lock:
        if id(part) not in _saved:
            _saved[id(part)] = _Saved(
                [
                    (name, buffer, buffer.clone(), buffer._version)
                    for name, buffer in part._buffers.items()
                    if buffer is not None and not _is_passing(buffer)
                ]
            )
        _saved[id(part)].n_calls += 1


def _is_passing(buffer: torch.Tensor) -> bool:
    """Returns whether a buffer cannot be put back, or is not there yet."""
    return nn.parameter.is_lazy(buffer) or buffer.is_inference() or buffer.is_meta


def _release(part: nn.Module) -> None:
    with _saved_lock, torch.no_grad():
        saved = _saved[id(part)]
        saved.n_calls -= 1
        if saved.n_calls == 0:
            del _saved[id(part)]
            for name, buffer, value, version in saved.buffers:
                part._buffers[name] = buffer
                _put_back(buffer, value, version)


def _put_back(buffer: torch.Tensor, value: torch.Tensor, version: int) -> None:
    """Gives a buffer its values again; an unchanged buffer may be part of the user's graph, so nothing is written."""
    if buffer.shape != value.shape:
        buffer.resize_(value.shape)
    if buffer.layout != torch.strided or buffer.is_nested:
        if buffer._version != version:
            buffer.copy_(value)
    # The version counter does not tell of others: batch norm writes its statistics without counting.
    elif not torch.equal(buffer, value):
        buffer.copy_(value)
