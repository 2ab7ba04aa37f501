"""Whether a tensor is dead after the call that takes it, so that the result may overwrite it; and dead inputs.

In `x = self.norm(x)` the convolution's output in `x` is never seen again, and yet it is alive until the result is
there: with large images that is the largest tensor of a forward pass, held twice. It may be overwritten if

1. the calling code calls a module, or a function of PyTorch, and drops the argument: its next instruction stores the
   result in the very variable that the argument was read from, or returns, or the argument was the result of another
   call and in no variable; and no exception handler of that code could see it;
2. nobody else holds it: Python's reference count is exactly that of the call, and nobody in C++ (a graph that saved it,
   a view) holds the tensor or its memory.

What the calls on the way from the calling code to here hold is counted, twice, on tensors known to be dead. Calls that
it was not counted for, those of modules with hooks among them, never overwrite; nor does anything on Python 3.10, whose
instructions differ. Where the interpreter's evaluation of frames was replaced (PEP 523; torch.compile does it, and may
leave it so after an error), every call holds more, and counts of the one kind say nothing about the other.
"""

from __future__ import annotations

import bisect
import dis
import functools
import sys
import threading
from dataclasses import dataclass
from inspect import CO_OPTIMIZED, ismodule
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORTHWHILE_BYTES = 2**20
"""Smaller tensors are not worth the look at the call. With 8 times as much, a ResNet-50 and an EfficientNet-Lite0 at
224x224 took 0.99 and 1.06 of the time."""

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
_FUNCTIONS = (F.relu, F.relu6, F.leaky_relu, F.hardtanh, torch.relu)
_STORES = frozenset({"STORE_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST"})

_Way = tuple[bool, tuple[CodeType, ...]]
_counting = threading.local()
_counting_lock = threading.Lock()


def is_dead(x: Tensor) -> bool:
    """Whether the caller's caller, a call of a PyTorch function or module, is the last to see `x`."""
    references = sys.getrefcount(x)
    is_counting = hasattr(_counting, "seen")
    if x.nbytes < WORTHWHILE_BYTES and not is_counting:
        return False
    code: list[CodeType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in _ON_THE_WAY:
        code.append(frame.f_code)
        frame = frame.f_back
    call = None if frame is None else _call_at(frame.f_code, frame.f_lasti)
    if frame is None or call is None:
        return False
    way = call.variable is not None, tuple(code)
    counts = (references, *_use_counts(x))
    if is_counting:
        _counting.seen.setdefault(way, set()).add(counts)
        return False
    return _counts(held_by_calls()).get(way) == counts and not x.is_leaf and not x._is_view() and _is_of(call, frame, x)


def empty_unused(leaves: tuple[Tensor, ...]) -> None:
    """After a forward pass, frees the memory of large inputs whose values the backward pass does not ask for.

    Args:
        leaves: each a detached slice of a buffer; the caller holds this tuple, the slices and the buffers.
    """
    if not any(leaf.is_cpu and leaf.nbytes >= WORTHWHILE_BYTES for leaf in leaves):
        return
    unsaved = (torch.zeros(1, requires_grad=True),)  # held by a tuple and by a graph that does not ask for its values
    graph = unsaved[0] + 1
    (wanted,) = [sys.getrefcount(tensor) for tensor in unsaved]
    wanted_uses = _use_counts(unsaved[0])[0], _POINT_HOLDERS
    for leaf, references in zip(leaves, [sys.getrefcount(tensor) for tensor in leaves], strict=True):
        if references == wanted and leaf.is_cpu and _use_counts(leaf) == wanted_uses:
            leaf.untyped_storage().resize_(0)
    del graph


def _use_counts(x: Tensor) -> tuple[int, int]:
    """How many hold a tensor in C++, and how many its memory."""
    tensor, memory = torch.ops.igfast.lean_use_counts(x)
    return tensor, memory


@dataclass(frozen=True)
class _Call:
    """A call with one argument, which the code that calls drops.

    Attributes:
        callee: the names that lead to what is called: a variable (or a global, if `is_global`) and attributes.
        is_global: whether the first of them is a global name.
        variable: where the argument was read from; None if it is the result of another call.
    """

    callee: tuple[str, ...]
    is_global: bool
    variable: str | None


@functools.lru_cache(maxsize=4096)
def _call_at(code: CodeType, at: int) -> _Call | None:
    """The call that code is at, if it drops its one argument; None where it does not, or where that is not clear."""
    bytecode = dis.Bytecode(code)
    if any(entry.start <= at < entry.end for entry in getattr(bytecode, "exception_entries", ())):
        return None
    instructions = [i for i in bytecode if i.opname not in ("CACHE", "EXTENDED_ARG")]
    index = bisect.bisect_right([i.offset for i in instructions], at) - 1
    call, after = instructions[index], instructions[index + 1] if index + 1 < len(instructions) else None
    if call.opname != "CALL" or call.arg != 1 or after is None:
        return None
    end = index - 1 if instructions[index - 1].opname == "PRECALL" else index
    start, depth = end, 0
    while depth != 1:  # back to where the argument begins
        start -= 1
        if start < 0 or instructions[start].opname.startswith(("JUMP", "POP_JUMP", "FOR_ITER", "RETURN")):
            return None
        depth += dis.stack_effect(instructions[start].opcode, instructions[start].arg, jump=False)
    callee = _names_before(instructions, start)
    if callee is None or any(i.is_jump_target for i in instructions[start : index + 1]):
        return None  # the argument may have been read elsewhere: f(x if a else y)
    argument = instructions[end - 1]
    if argument.opname == "CALL":
        return _Call(*callee, None)
    if end - start > 1 or argument.opname != "LOAD_FAST":
        return None
    dropped = after.opname == "RETURN_VALUE" or (after.opname in _STORES and _first(after.argval) == argument.argval)
    return _Call(*callee, argument.argval) if dropped else None


def _names_before(instructions: list[dis.Instruction], end: int) -> tuple[tuple[str, ...], bool] | None:
    """The names that are read right before a position, `self.block.norm`, and whether the first is a global one."""
    names: list[str] = []
    for instruction in reversed(instructions[:end]):
        if instruction.opname in ("LOAD_METHOD", "LOAD_ATTR"):
            names.insert(0, instruction.argval)
        elif instruction.opname in ("LOAD_FAST", "LOAD_GLOBAL"):
            return (instruction.argval, *names), instruction.opname == "LOAD_GLOBAL"
        elif instruction.opname != "PUSH_NULL":
            return None
    return None


def _first(names: Any) -> Any:
    return names[0] if isinstance(names, tuple) else names


def _is_of(call: _Call, frame: FrameType, x: Tensor) -> bool:
    """Whether a call is one of a module or of a function that was counted, and its argument is `x`."""
    if not frame.f_code.co_flags & CO_OPTIMIZED:  # its variables are not those of a function
        return False
    variables = frame.f_locals
    try:
        callee: Any = (frame.f_globals if call.is_global else variables).get(call.callee[0])
        for name in call.callee[1:]:
            parts = callee._modules if isinstance(callee, nn.Module) else vars(callee) if ismodule(callee) else {}
            callee = parts.get(name)
        is_counted = isinstance(callee, nn.Module) or any(callee is function for function in _FUNCTIONS)
        return is_counted and (call.variable is None or variables.get(call.variable) is x)
    finally:
        if sys.version_info < (3, 13):
            variables.clear()  # a copy, which the frame would keep


def _count() -> dict[_Way, set[tuple[int, int, int]]]:
    """For each way from calling code to here, the references to an argument that nobody else holds."""
    from igfast.lean._mode import LeanMode

    modules = [nn.BatchNorm2d(1), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.Threshold(0, 0), nn.Hardtanh()]
    _counting.seen = {}
    try:
        with LeanMode(), torch.enable_grad():
            for call in (*(module.eval() for module in modules), *_FUNCTIONS):
                for _ in range(3):
                    _call_with_dead_arguments(SimpleNamespace(call=call), torch.ones(1, 1, 1, 1, requires_grad=True))
        seen: dict[_Way, set[tuple[int, int, int]]] = _counting.seen
    finally:
        del _counting.seen
    return seen


def held_by_calls() -> int:
    """References to an argument of two nested calls, by which the ways to evaluate frames are told apart."""
    return _outer(SimpleNamespace())


def _outer(x: SimpleNamespace) -> int:
    return _inner(x)


def _inner(x: SimpleNamespace) -> int:
    return sys.getrefcount(x)


@functools.cache
def count_once(held_by_calls: int) -> dict[_Way, set[tuple[int, int, int]]]:  # noqa: ARG001
    """The first of the two counts, for a way to evaluate frames."""
    return _count()


@functools.cache
def _counts_of_both(held_by_calls: int) -> dict[_Way, tuple[int, int, int]]:
    first, second = count_once(held_by_calls), _count()
    return {way: next(iter(counts)) for way, counts in second.items() if len(counts) == 1 and first.get(way) == counts}


def _counts(held_by_calls: int) -> dict[_Way, tuple[int, int, int]]:
    with _counting_lock:
        return _counts_of_both(held_by_calls)


def _call_with_dead_arguments(holder: SimpleNamespace, leaf: Tensor) -> None:
    x = leaf * 1
    x = holder.call(x)
    holder.call(leaf.mul(1))
