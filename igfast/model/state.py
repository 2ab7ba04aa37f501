"""Restores the buffers and hooks of the user's model."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._C import _len_torch_function_stack
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
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
    """The buffers of a module without its parts, and the calls that are to leave them as they are.

    Attributes:
        buffers: for each buffer its name, the tensor, a copy of its values, and the tensor's version.
        calls: a token for each running call.
    """

    buffers: list[tuple[str, torch.Tensor, torch.Tensor, int]]
    calls: set[object]


_saved: dict[int, _Saved] = {}  # by the id of the module, which running calls keep alive
_saved_lock = threading.Lock()
os.register_at_fork(after_in_child=_saved_lock._at_fork_reinit)  # type: ignore[attr-defined]  # a thread may have held it


@contextmanager
def buffers_restored(forward_func: Callable[..., Any]) -> Iterator[None]:
    """Puts back the buffers that a forward pass in training mode updates, such as running statistics.

    Only modules in training mode are looked at. Where several threads attribute one model, the last thread puts back
    what the first one found. Random draws (dropout) are not undone, because averaging several calls relies on them.
    """
    call = object()
    parts = [
        part
        for part in parts_behind(forward_func)
        if getattr(part, "training", False) and part._buffers  # frozen TorchScript has no mode
    ]
    try:
        for part in parts:
            _keep(part, call)
        yield
    finally:
        try:
            _put_back_after(parts, call)
        except BaseException:  # Ctrl-C, say: nothing would do the rest later
            _put_back_after(parts, call)
            raise


@contextmanager
def undisturbed(forward_func: Callable[..., Any]) -> Iterator[None]:
    """Leaves the caller's inference mode, in which nothing can be differentiated; puts modes and buffers back."""
    modes = _get_current_function_mode_stack()
    try:
        with torch.inference_mode(False), torch.no_grad(), buffers_restored(forward_func):
            yield
    finally:
        # An interrupt, just as a mode is entered or PyTorch has taken it off for one call, leaves others than before.
        if _get_current_function_mode_stack() != modes:
            while _len_torch_function_stack():
                _pop_mode()
            for mode in modes:
                _push_mode(mode)


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
            for hooks in (getattr(part, name, None) or {} for name in _HOOKS):  # TorchScript may lack some
                for number in [n for n, hook in list(hooks.items()) if n >= first_new and not is_igfasts(hook)]:
                    hooks.pop(number, None)
        raise


def _keep(part: nn.Module, call: object) -> None:
    with _saved_lock:
        if id(part) in _saved:
            _saved[id(part)].calls.add(call)
            return
        buffers = [
            (name, buffer, buffer.clone(), buffer._version)
            for name, buffer in part._buffers.items()
            if buffer is not None and not _is_passing(buffer)
        ]
        _saved[id(part)] = _Saved(buffers, {call})


def _is_passing(buffer: torch.Tensor) -> bool:
    """Returns whether a buffer cannot be put back, or is not there yet."""
    return nn.parameter.is_lazy(buffer) or buffer.is_inference() or buffer.is_meta


def _put_back_after(parts: list[nn.Module], call: object) -> None:
    """Puts the buffers of modules back of which this was the last call; goes on where it was interrupted."""
    with _saved_lock, torch.no_grad():
        for part in parts:
            saved = _saved.get(id(part))
            if saved is None or call not in saved.calls:
                continue
            if saved.calls == {call}:
                for name, buffer, value, version in saved.buffers:
                    part._buffers[name] = buffer
                    _put_back(buffer, value, version)
                del _saved[id(part)]
            saved.calls.discard(call)


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
