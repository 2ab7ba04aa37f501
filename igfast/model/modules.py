"""Finds the modules that a forward function uses, their weights, and whether torch.compile compiled any of them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any

import torch
from torch import nn

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_CONTAINERS = frozenset({list, tuple, dict})
_MOST_ENTRIES = 1000  # of a list that is searched for modules: a longer one holds data
_numbers: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_next_number = itertools.count()


def module_of(forward_func: Callable[..., Any]) -> nn.Module | None:
    """Returns the module that a forward function is, or that a bound method or functools.partial holds; or None."""
    while isinstance(forward_func, functools.partial):
        forward_func = forward_func.func
    owner = forward_func if isinstance(forward_func, nn.Module) else getattr(forward_func, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def modules_behind(forward_func: Callable[..., Any]) -> list[nn.Module]:
    """Returns the modules that a forward function is seen to use: its own, or those that its code can reach.

    These are modules in its global names, closure, default arguments and fixed arguments. Of the object whose method it
    is, and of objects in those places, attributes are looked at too, and of lists, tuples and dicts what they hold.
    Functions in those places are not followed.
    """
    own = module_of(forward_func)
    used = _used_by(forward_func) if own is None else [own, *_fixed_in(forward_func)[1]]
    return list(dict.fromkeys(module for value in used for module in _modules_in(value)))


def parts_behind(forward_func: Callable[..., Any]) -> list[nn.Module]:
    """Returns the modules behind a forward function, all their parts, and modules in lists of their attributes.

    In the place of a module that is made for one call is what it names as `kept_with`.
    """
    parts: dict[nn.Module, None] = {}
    modules = modules_behind(forward_func)
    waiting = modules[::-1]
    while waiting:
        part = waiting.pop()
        if part not in parts:
            parts[part] = None
            for name, value in list(vars(part).items()):  # of a copy, as another thread may attribute the model too
                if type(value) in _CONTAINERS and name not in OF_EVERY_MODULE:
                    waiting.extend(_modules_in(value)[::-1])
            if part._modules:
                waiting.extend([child for child in part._modules.values() if child is not None][::-1])
    for module in modules:
        if lasting(module) is not module:
            parts[lasting(module)] = parts.pop(module)
    return list(parts)


def lasting(module: Any) -> Any:
    """Returns a module, or what a module that is made for one call names in its place, as `kept_with`."""
    return module.kept_with if hasattr(type(module), "kept_with") else module


def weights_behind(forward_func: Callable[..., Any]) -> Iterator[nn.Parameter]:
    """Yields the parameters of the modules behind a forward function."""
    for part in parts_behind(forward_func):
        yield from (weight for weight in part._parameters.values() if weight is not None)


def floating_dtype(forward_func: Callable[..., Any]) -> torch.dtype | None:
    """Returns the dtype of the first floating parameter that a forward function is seen to use; None without one."""
    dtypes = (weight.dtype for weight in weights_behind(forward_func))
    return next((dtype for dtype in dtypes if dtype.is_floating_point), None)


def device_of(forward_func: Callable[..., Any]) -> torch.device | None:
    """Returns the device of the first weight off the meta device that a function is seen to use; None without one."""
    return next((weight.device for weight in weights_behind(forward_func) if not weight.is_meta), None)


def why_compiled(forward_func: Callable[..., Any]) -> str:
    """Returns which part of a forward function torch.compile compiled, as a sentence; empty if none."""
    if _is_compiled(forward_func):
        return "forward_func is compiled (torch.compile)"
    for value in _used_by(forward_func) if module_of(forward_func) is None else ():
        if callable(value) and _is_compiled(value):
            return f"{getattr(value, '__name__', 'a function')} is compiled (torch.compile)"
    for part in parts_behind(forward_func):
        if (
            "_orig_mod" in part._modules
            or vars(part).get("_compiled_call_impl") is not None
            or _is_compiled(part.forward)
        ):
            return f"{type(part).__name__} is compiled (torch.compile)"
    return ""


def flags_of(forward_func: Callable[..., Any]) -> tuple[bool | str, ...]:
    """Returns the truth values and texts that a function is seen to use, also in containers; of a module nothing."""
    values = [] if module_of(forward_func) is not None else _used_by(forward_func)
    held = (one for value in values for one in (held_by(value) or (value,)))
    return tuple(value for value in held if isinstance(value, (bool, str)))


def number_of(module: nn.Module) -> int:
    """Returns a number that no other module has or had."""
    number = _numbers.get(module)
    if number is None:
        number = _numbers[module] = next(_next_number)
    return number


def _fixed_in(forward_func: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
    """Returns the function in a functools.partial, and the arguments that are fixed."""
    fixed: list[Any] = []
    while isinstance(forward_func, functools.partial):
        fixed += [*forward_func.args, *forward_func.keywords.values()]
        forward_func = forward_func.func
    return forward_func, fixed


def _used_by(forward_func: Callable[..., Any]) -> list[Any]:
    """Returns what a function that is no module is seen to use."""
    function, fixed = _fixed_in(forward_func)
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):  # an object that can be called
        return [*fixed, *attributes_of(function).values()]
    names = dict.fromkeys(_names_in(code))  # in the code's order, on which the first weight's dtype depends
    reached = [*fixed, *_reached_by(function, names)]
    named = [value for one in reached for name, value in attributes_of(one).items() if name in names]
    return [*reached, *named, *attributes_of(getattr(function, "__self__", None)).values()]


def _names_in(code: CodeType) -> Iterator[str]:
    """Yields the names in a function's code, also inside its comprehensions, lambdas and inner functions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _reached_by(function: Any, names: Iterable[str]) -> Iterator[Any]:
    """Yields what a function's global names, closure and defaults are."""
    yield from (function.__globals__[name] for name in names if name in function.__globals__)
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing was assigned yet
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def attributes_of(value: Any) -> dict[str, Any]:
    """Returns an object's own attributes; none of a module or a class."""
    found = {} if isinstance(value, (nn.Module, type)) else getattr(value, "__dict__", {})
    return found if type(found) is dict else {}


def _modules_in(value: Any) -> list[nn.Module]:
    """Returns a module as a list, or the modules that a list, tuple, set or dict holds."""
    return [value] if isinstance(value, nn.Module) else [one for one in held_by(value) if isinstance(one, nn.Module)]


def held_by(value: Any) -> list[Any]:
    """Returns what a list, tuple, set or dict holds; nothing of anything else, or of one with many entries."""
    if not isinstance(value, (list, tuple, set, dict)) or len(value) > _MOST_ENTRIES:
        return []
    return list(value.values() if isinstance(value, dict) else value)


def is_igfasts(hook: Any) -> bool:
    """Returns whether a hook, or a replaced method, is of igfast's."""
    return str(getattr(hook, "__module__", "")).startswith("igfast.")


def _is_compiled(function: Any) -> bool:
    return hasattr(function, "_torchdynamo_orig_callable")


def weight_bytes(module: nn.Module | None, device: torch.device) -> int:
    """Returns the bytes of the weights on a device that each chunk reads whole: all but embedding tables."""
    parts = module.modules() if module is not None else ()
    layers = [part for part in parts if not _is_table(part)]
    weights = {weight for layer in layers for weight in layer.parameters(recurse=False)}  # a set: layers share some
    read = (weight for weight in weights if not nn.parameter.is_lazy(weight) and weight.device == device)
    return sum(weight.numel() * weight.element_size() for weight in read)


def _is_table(module: nn.Module) -> bool:
    """Returns whether a module reads only parts of its weights; scripted modules know their original class by name."""
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name in ("Embedding", "EmbeddingBag")
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))
