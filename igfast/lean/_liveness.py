"""Whether a tensor is dead after the call that takes it, so that the result may overwrite it; and dead inputs.

In `x = self.norm(x)` the convolution's output in `x` is never seen again, and yet it is alive until the result is
there: with large images that is the largest tensor of a forward pass, held twice. It may be overwritten if

1. the calling code itself drops it: its next instruction stores the result in the very variable that the argument was
   read from, or returns, or the argument was the result of another call and in no variable; and
2. nobody else holds it: Python's reference count is exactly that of the call, and nobody in C++ (a graph that saved it,
   a view) holds the tensor or its memory.

What the calls on the way from the calling code to here hold is counted once on tensors known to be dead. Calls that it
was not counted for, those of modules with hooks among them, never overwrite.
"""

from __future__ import annotations

import bisect
import dis
import functools
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType, SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORTHWHILE_BYTES = 2**20
"""Smaller tensors are not worth the look at the call, about 10 microseconds."""

_ON_THE_WAY = frozenset(
    {
        "igfast.lean._mode",
        "igfast.lean.activations",
        "igfast.lean.affine",
        "torch.nn.functional",
        "torch.nn.modules.activation",
        "torch.nn.modules.batchnorm",
        "torch.nn.modules.module",
        "torch.overrides",
    }
)
_POINT_HOLDERS = 3  # of a path point's memory: the buffer, its slice, the leaf
_CONTAINER = "torch.nn.modules.container"
_LOADS = frozenset({"LOAD_FAST", "LOAD_FAST_LOAD_FAST"})
_CALLEES = frozenset({"LOAD_METHOD", "LOAD_ATTR", "LOAD_GLOBAL"})
_NO_OPERATION = frozenset({"CACHE", "EXTENDED_ARG", "PRECALL", "PUSH_NULL"})
_STORES = frozenset({"STORE_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST"})

_Way = tuple[bool, tuple[CodeType, ...]]
_counting = threading.local()
_counting_lock = threading.Lock()


def is_dead(x: Tensor) -> bool:
    """Whether the caller's caller, a call of a PyTorch function or module, is the last to see `x`."""
    references = sys.getrefcount(x)
    if x.nbytes < WORTHWHILE_BYTES and not hasattr(_counting, "seen"):
        return False
    code: list[CodeType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in _ON_THE_WAY:
        code.append(frame.f_code)
        frame = frame.f_back
    in_container = frame is not None and frame.f_globals.get("__name__") == _CONTAINER
    in_variable = None if frame is None else _dropped_from(frame.f_code, frame.f_lasti, in_container)
    if in_variable is None:
        return False
    way = in_variable, tuple(code)
    if hasattr(_counting, "seen"):
        _counting.seen.setdefault(way, set()).add((references, *_use_counts(x)))
        return False
    return _counts().get(way) == (references, *_use_counts(x)) and not x.is_leaf and not x._is_view()


def empty_unused(leaves: tuple[Tensor, ...]) -> None:
    """After a forward pass, frees the memory of large inputs whose values the backward pass does not ask for.

    Args:
        leaves: each a detached slice of a buffer; the caller holds this tuple, the slices and the buffers.
    """
    held_once = (torch.empty(0),)
    references = [sys.getrefcount(tensor) for tensor in held_once]
    for leaf, count in zip(leaves, [sys.getrefcount(tensor) for tensor in leaves], strict=True):
        is_large = leaf.is_cpu and leaf.nbytes >= WORTHWHILE_BYTES
        if is_large and [count] == references and _use_counts(leaf) == (_used_leaf_count(), _POINT_HOLDERS):
            leaf.untyped_storage().resize_(0)


def _use_counts(x: Tensor) -> tuple[int, int]:
    """How many hold a tensor in C++, and how many its memory."""
    tensor, memory = torch.ops.igfast.lean_use_counts(x)
    return tensor, memory


@functools.cache
def _used_leaf_count() -> int:
    """How many hold a leaf that a graph leads to and that no graph saved."""
    with torch.enable_grad():
        leaf = torch.zeros(1, requires_grad=True)
        graph = leaf + 1
    counts = _use_counts(leaf)
    del graph
    return counts[0]


@functools.lru_cache(maxsize=4096)
def _dropped_from(code: CodeType, at: int, in_container: bool) -> bool | None:
    """Whether a call's one argument is dropped by the code that calls: from a variable, True; from none, False.

    None where it is not dropped, or where that is not clear. What is called must be an attribute (`self.norm`,
    `F.relu`) or a global name; a variable may hold a bound method, whose call holds less, so it counts in torch's
    containers alone.
    """
    if "__call__" in code.co_names:
        return None
    everything = list(dis.get_instructions(code))
    instructions = [i for i in everything if i.opname not in _NO_OPERATION]
    index = bisect.bisect_right([i.offset for i in instructions], at) - 1
    if not 1 <= index < len(instructions) - 1 or instructions[index].opname != "CALL" or instructions[index].arg != 1:
        return None
    argument, after = instructions[index - 1], instructions[index + 1]
    if any(i.is_jump_target for i in everything if argument.offset < i.offset <= at):
        return None  # the argument may have been read elsewhere: f(x if a else y)
    if argument.opname == "CALL":
        return False
    if argument.opname not in _LOADS or not (in_container or _names_callee(instructions[index - 2])):
        return None
    variable = argument.argval[-1] if isinstance(argument.argval, tuple) else argument.argval
    if after.opname == "RETURN_VALUE":
        return True
    stored = after.argval[0] if isinstance(after.argval, tuple) else after.argval
    return True if after.opname in _STORES and stored == variable else None


def _names_callee(instruction: dis.Instruction) -> bool:
    return instruction.opname in _CALLEES


@functools.cache
def _counts_once() -> dict[_Way, tuple[int, int, int]]:
    """For each way from calling code to here, the references to an argument that nobody else holds."""
    from igfast.lean._mode import LeanMode

    calls: list[Callable[[Tensor], Tensor]] = [
        *(module.eval() for module in (nn.BatchNorm2d(1), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.Threshold(0, 0))),
        *(F.relu, F.relu6, F.leaky_relu, F.hardtanh, torch.relu, nn.Hardtanh()),
    ]
    _counting.seen = {}
    try:
        with LeanMode(), torch.enable_grad():
            for call in calls:
                for _ in range(3):  # always with the same result
                    _call_with_dead_arguments(SimpleNamespace(call=call), torch.ones(1, 1, 1, 1, requires_grad=True))
        seen: dict[_Way, set[tuple[int, int, int]]] = _counting.seen
    finally:
        del _counting.seen
    return {way: counts.pop() for way, counts in seen.items() if len(counts) == 1}


def _counts() -> dict[_Way, tuple[int, int, int]]:
    with _counting_lock:
        return _counts_once()


def _call_with_dead_arguments(holder: SimpleNamespace, leaf: Tensor) -> None:
    x = leaf * 1
    x = holder.call(x)
    holder.call(leaf.mul(1))
