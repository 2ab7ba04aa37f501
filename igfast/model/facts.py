"""Finds out, for a model and inputs of one kind, whether rows are independent and whether channels-last is faster."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from igfast.errors import IgfastError, InputError
from igfast.interrupts import is_interrupt, must_pass
from igfast.lean.execution import why_no_modes
from igfast.memory.offload import storage_of
from igfast.memory.recovery import free_memory, is_out_of_memory
from igfast.model.channels_last import ConvolutionWatch, in_channels_last
from igfast.model.fast_path import has_fast_path
from igfast.model.forward import ForwardFunction
from igfast.model.independence import distance, is_autocast, rounding, rounds_to_tf32
from igfast.model.modules import (
    OF_EVERY_MODULE,
    attributes_of,
    flags_of,
    held_by,
    is_igfasts,
    lasting,
    module_of,
    number_of,
    parts_behind,
    weights_behind,
    why_compiled,
)
from igfast.rng import random_state_kept

UNKNOWN = sys.maxsize
_FLAGS = frozenset({bool, str, type(None)})
_NO_FLAGS = frozenset({int, float, Tensor, nn.Parameter, torch.device, torch.dtype})
_MOST_KINDS = 64


@dataclass(frozen=True)
class Facts:
    """Facts about a model with inputs of one kind.

    Rows belong together where the output of one example depends on the others in its batch.

    Attributes:
        why_whole: why rows belong together; empty while rows are taken to be independent.
        output_dim: dimensions of an output of several rows, of a layer those of each of its values; None if unknown.
        gains_channels_last: whether channels-last images make convolutions faster and leave the outputs as they are.
        agrees: ways of `igfast.model.guard` in which rows had the outputs that they have alone.
        not_lean: why the model does not take lean execution; empty unless that was found out.
        most_rows: rows of a chunk that fitted after a larger chunk did not; None if no chunk was too large.
        n_savings: number of measures against lack of memory that were taken at one row.
        recomputes: whether repeated blocks may be recomputed: False once one did something else when it ran again.
        plain_bytes: what plain autograd keeps for the caller's own call; None if that was not asked.
        why_compiled: which part of the model torch.compile compiled; empty if none.
        has_fast_path: as of `ForwardFunction`.
    """

    why_whole: str = ""
    output_dim: int | tuple[int, ...] | None = None
    gains_channels_last: bool = False
    agrees: frozenset[str] = frozenset()
    not_lean: str = ""
    most_rows: int | None = None
    n_savings: int = 0
    recomputes: bool = True
    plain_bytes: int | None = None
    why_compiled: str = ""
    has_fast_path: bool = False


def _holder(forward_func: Callable[..., Any]) -> Any:
    """Returns what facts are kept with: a partial call, as its arguments belong to it; else module or function."""
    if isinstance(forward_func, functools.partial):
        return forward_func
    return lasting(module_of(forward_func)) or forward_func


class _Remembered:
    """Keeps what calls found out about a model for later calls with inputs of the same kind, while the model lives.

    Safe to share between threads. For each model, the last `_MOST_KINDS` kinds of inputs are kept.
    """

    def __init__(self) -> None:
        self._values: weakref.WeakKeyDictionary[object, OrderedDict[Hashable, Facts]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def get(self, forward_func: Callable[..., Any], kind: Hashable) -> Facts | None:
        """Returns the value for inputs of this kind, or None."""
        with self._lock, contextlib.suppress(TypeError, KeyError):
            kinds = self._values[_holder(forward_func)]
            kinds.move_to_end(kind)
            return kinds[kind]
        return None

    def put(self, forward_func: Callable[..., Any], kind: Hashable, value: Facts) -> None:
        """Keeps a value, unless the function cannot be hashed or weakly referenced."""
        with self._lock, contextlib.suppress(TypeError):
            kinds = self._values.setdefault(_holder(forward_func), OrderedDict())
            kinds[kind] = value
            kinds.move_to_end(kind)
            if len(kinds) > _MOST_KINDS:
                kinds.popitem(last=False)


remembered = _Remembered()


def key_of(evaluator: ForwardFunction, kind: Hashable) -> Hashable:
    """Returns the key of a model's facts; None where the key could not tell different calls apart.

    The key has the function, the modules that it is seen to use with all their parts, the truth values and texts that
    it or a part holds, and the shapes, layouts, dtypes and devices of the inputs. Arguments (of most tensors the shape
    and dtype), training modes, buffers that are missing, the user's hooks, replaced forward methods, autocast and
    whether weights require gradients are in the key too.
    """
    args = tuple(_key_of_argument(arg) for arg in evaluator.args)
    if kind is None or None in args:
        return None
    forward_func = evaluator.forward_func
    of_inputs = tuple((x.shape, x.stride(), x.dtype, x.device) for x in evaluator.inputs.x)
    parts = parts_behind(forward_func)
    differentiates = any(w.requires_grad for part in parts for w in part._parameters.values() if w is not None)
    autocast = is_autocast(evaluator.inputs.device.type)
    function = getattr(forward_func, "__func__", None)  # bound methods have one
    seen: dict[int, Hashable] = {}
    hooks = *_numbers_of(_global_forward_pre_hooks), *_numbers_of(_global_forward_hooks)
    of_model = (
        function,
        flags_of(forward_func),
        tuple(_key_of_part(part, seen) for part in parts),
        hooks,
        differentiates,
    )
    return kind, type(evaluator), of_model, evaluator.inputs.joint, of_inputs, args, autocast


def _flags_in(value: Any, seen: dict[int, Hashable]) -> Hashable:
    """Returns truth values, texts and None in an attribute: itself, or what a container or a plain object holds.

    `seen` has what other attributes held, as many parts of a model share one configuration.
    """
    if type(value) in _FLAGS or isinstance(value, Enum):
        return value  # type: ignore[no-any-return]
    if isinstance(value, (Tensor, nn.Module)):
        return ()
    if isinstance(value, (FunctionType, MethodType)):
        return id(value)
    if id(value) not in seen:
        held = held_by(value) or list(attributes_of(value).values())
        seen[id(value)] = tuple(one for one in held if type(one) in _FLAGS)
    return seen[id(value)]


def _key_of_part(part: nn.Module, seen: dict[int, Hashable]) -> Hashable:
    """Returns what of a module decides whether its rows are independent, as far as that is seen."""
    own = vars(part)
    key: tuple[Hashable, ...] = number_of(part), own.get("training")
    for name, value in list(own.items()):  # of a copy, as other threads may attribute the model too
        if name not in OF_EVERY_MODULE and type(value) not in _NO_FLAGS:
            key += (_flags_in(value, seen),)
    if (forward := own.get("forward")) is not None and not is_igfasts(forward):
        key += (id(forward),)
    if own.get("_compiled_call_impl") is not None:
        key += ("compiled",)
    if part._buffers:
        key += tuple(buffer is None for buffer in part._buffers.values())  # batch norm without statistics, say
    return *key, *_numbers_of(part._forward_pre_hooks), *_numbers_of(part._forward_hooks)


def _numbers_of(hooks: dict[int, Any]) -> tuple[int, ...]:
    """Returns the numbers of the user's hooks; of a copy, because other threads may add some meanwhile."""
    return tuple(number for number, hook in list(hooks.items()) if not is_igfasts(hook)) if hooks else ()


def _key_of_argument(arg: Any) -> Hashable:
    if isinstance(arg, Tensor):
        # Switches, and numbers of groups, decide whether rows depend on each other.
        is_column = arg.dim() > 0 and arg.numel() == arg.shape[0] and not (arg.is_floating_point() or arg.is_complex())
        decides = arg.device.type == "cpu" and (arg.dim() == 0 or is_column)
        return "tensor", arg.shape, arg.dtype, tuple(arg.reshape(-1).tolist()) if decides else ()
    return (type(arg), arg) if isinstance(arg, (bool, int, float, str, type(None), torch.dtype)) else None


def discover(evaluator: ForwardFunction) -> tuple[Facts, Any]:
    """Runs the caller's own call; returns its facts and its output, which is None if memory ran out.

    Raises:
        InputError: an argument says that rows belong together, and the model does not take the argument.
        OutputError, OutputTypeError: the output cannot be attributed.
    """
    why_whole = evaluator.why_whole_steps()
    compiled = why_compiled(evaluator.forward_func)
    fast = evaluator.has_fast_path = has_fast_path(evaluator.forward_func)
    watch = ConvolutionWatch()
    output = None
    try:  # random draws are those of a call without this evaluation
        with random_state_kept(evaluator.inputs.device), nullcontext() if compiled or why_no_modes() else watch:
            output = evaluator.own_output()
    except Exception as error:
        if why_whole and not must_pass(error) and not isinstance(error, IgfastError):
            raise InputError(f"{why_whole}, and forward_func does not take that: {error}") from error
        if not is_out_of_memory(error):
            raise
        free_memory(evaluator.inputs.device)
    own = Facts(why_whole, why_compiled=compiled, has_fast_path=fast)
    if output is None:
        return replace(own, gains_channels_last=watch.gains), None
    if why_whole:
        evaluator.n_entries(output)
        return own, output
    output = _dimension_restored(evaluator, output)
    if isinstance(output, Tensor):
        evaluator.output_dim = output.dim()
    elif evaluator.gives_layers_values:
        evaluator.output_dim = tuple(value.dim() for value in output)
    why_whole = evaluator.why_output_is_joint(output)
    gains = watch.gains and not why_whole and _takes_channels_last(evaluator, output)
    return replace(own, why_whole=why_whole, output_dim=evaluator.output_dim, gains_channels_last=gains), output


def plain_bytes(evaluator: ForwardFunction, limit: int) -> int:
    """Returns the bytes that plain autograd keeps for the caller's own call besides weights.

    Returns `UNKNOWN` if these are more than `limit`, or if the call fails under hooks on saved tensors. The evaluator
    must not be in lean execution.
    """
    weights = set(map(storage_of, weights_behind(evaluator.forward_func)))
    kept: dict[object, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = storage_of(tensor)
        if storage is None or storage not in weights:
            kept[storage or object()] = tensor.nbytes if storage is None else tensor.untyped_storage().nbytes()
            if sum(kept.values()) > limit:
                raise MemoryError("more than that")
        return tensor.detach()  # the tensor itself would be held by its own graph

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    try:
        with random_state_kept(evaluator.inputs.device), hooks:
            evaluator.output_with_graph(evaluator.inputs.x, evaluator.all_examples())
    except Exception as error:  # a model may raise anything, also where hooks are in place
        if is_interrupt(error):
            raise
        return UNKNOWN
    return sum(kept.values())


def _takes_channels_last(evaluator: ForwardFunction, output: Any) -> bool:
    """Returns whether channels-last images give the caller's own call the same output, up to rounding.

    Runs on the caller's own inputs, before gradients or accumulators take memory.
    """
    images = tuple(map(in_channels_last, evaluator.inputs.x))
    if all(image is x for image, x in zip(images, evaluator.inputs.x, strict=True)):
        return False
    try:
        with random_state_kept(evaluator.inputs.device):
            other = evaluator.comparable(evaluator.output(images, evaluator.all_examples()))
    except Exception as error:  # a model may raise anything for another layout: `view` does
        if is_interrupt(error):
            raise
        if is_out_of_memory(error):
            free_memory(evaluator.inputs.device)
        return False
    own = evaluator.comparable(output)
    # Kernels for another layout may round float32 to 10 bits in an order of their own.
    return distance(other, own) <= max(rounding((own, *images)), 5e-2 if own.is_cuda and rounds_to_tf32() else 0.0)


def _dimension_restored(evaluator: ForwardFunction, output: Any) -> Any:
    """Returns an output with the dimension of entries, which some models drop for a single example: by `squeeze()`."""
    values = output if evaluator.gives_layers_values else (output,)
    if evaluator.inputs.batch > 1 or not all(isinstance(value, Tensor) for value in values):
        return output
    if all(value.dim() > 0 and value.shape[0] == 1 for value in values):
        return output
    twice = tuple(x.expand(2, *x.shape[1:]).contiguous() for x in evaluator.inputs.x)
    try:
        with random_state_kept(evaluator.inputs.device):
            of_two = evaluator.output(twice, torch.zeros(2, dtype=torch.int64, device=evaluator.inputs.device))
    except Exception as error:  # a model may raise anything for two rows
        if is_interrupt(error):
            raise
        return output
    pairs = zip(values, of_two if evaluator.gives_layers_values else (of_two,), strict=True)
    found = tuple(value.unsqueeze(0) if _drops(value, two) else value for value, two in pairs)
    return found if evaluator.gives_layers_values else found[0]


def _drops(value: Tensor, of_two: Any) -> bool:
    return isinstance(of_two, Tensor) and of_two.dim() == value.dim() + 1 and of_two.shape[0] == 2
