"""Adds `explain` to the three classes: takes NumPy arrays, attributes, and gathers what belongs to the result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from igfast.errors import ArgumentError, ArgumentTypeError, ConvergenceWarning, InputTypeError, warn
from igfast.explanation.result import Explanation, classes_of
from igfast.model.modules import device_of, floating_dtype, modules_behind
from igfast.request.model_inputs import AtLayer
from igfast.request.several_baselines import Baselines
from igfast.run.attributions import convergence_delta

_LARGE_DELTA = 0.3  # of the change of F
_IN_THE_RESULT = ("return_convergence_delta", "return_report")


class Explains:
    """Adds `explain` to a class that has `attribute`."""

    forward_func: Callable[..., Any]
    attribute: Callable[..., Any]
    multiplies_by_inputs: bool
    _igfast_ends: Callable[
        ..., tuple[Tensor, Tensor]
    ]  # F(inputs) and F(baselines), one number for each entry of the output

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Lets methods that Captum's classes do not have yield to those that another base has under these names."""
        super().__init_subclass__(**kwargs)
        for name in ("explain", "attribute_targets"):
            owners = [base for base in cls.__mro__ if name in vars(base)]
            theirs = [base for base in owners if base.__module__.split(".")[0] != "igfast"]
            if theirs and owners[0] is not theirs[0]:
                setattr(cls, name, vars(theirs[0])[name])

    def explain(self, *args: Any, feature_names: Any = None, target_names: Any = None, **kwargs: Any) -> Explanation:
        """Attributes as `attribute` does, and returns everything that belongs to the result in one object.

        Args:
            *args: the arguments of `attribute`, except `return_convergence_delta` and `return_report`; both are in the
                result. NumPy arrays and DataFrames may stand in the place of tensors. They go to the device of the
                model's parameters, and floating ones become of their dtype.
            feature_names: names for pictures and pages: one for each column of a table, or for each text the list
                of its tokens. None takes the columns of a DataFrame.
            target_names: names of the classes, for summaries, pictures and pages: a list, or a dict by number such as
                the `id2label` of a configuration of transformers. Those of the attributed classes are kept.
            **kwargs: further arguments of `attribute`, by name.

        Returns:
            An `igfast.Explanation`, with tensors of its own. For a neuron, the predictions are the neuron's values, and
            the target is the selector.

        Raises:
            ArgumentTypeError: an argument that `attribute` does not have, or one that is missing.
            ArgumentError: `feature_names` has another number of names than there are features, or `target_names` are no
                texts.
            InputTypeError: an array that does not hold numbers.
            And whatever `attribute` raises for the same arguments.

        Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 1 and 3, and Proposition 1.

        Example:
            >>> model = torch.nn.Linear(3, 2)
            >>> explanation = igfast.IntegratedGradients(model).explain(np.ones((1, 3)), target=0, n_steps=5)
            >>> explanation.attributions.shape
            torch.Size([1, 3])
        """
        bound = self._igfast_bound(args, kwargs)
        if feature_names is None and hasattr(bound["inputs"], "columns"):
            feature_names = list(map(str, bound["inputs"].columns))
        given = tensors_of(self.forward_func, bound)
        names = _checked_names(feature_names, given["inputs"])
        class_names = _names_by_class(target_names)
        asks_delta = "return_convergence_delta" in inspect.signature(self.attribute).parameters
        asked = {"return_convergence_delta": True} if asks_delta else {}
        attributions, *delta, report = self.attribute(**given, **asked, return_report=True)
        at_input, at_baseline = (end.reshape(-1) for end in report.ends or self._igfast_ends(**given))
        if not delta:
            flat = tuple(tensor.detach() for tensor in flattened(attributions))
            delta = [convergence_delta(flat, at_input, at_baseline)]
        if self.multiplies_by_inputs and "attribute_to_layer_input" in given:
            _warn_if_incomplete(delta[0], at_input - at_baseline)
        selector, baselines = given.get("neuron_selector"), given["baselines"]
        if isinstance(baselines, AtLayer):
            baselines = baselines.value
        if isinstance(baselines, Baselines):
            baselines = baselines.data
        return Explanation(
            attributions=_detached(attributions),
            inputs=_copied(given["inputs"]),
            baselines=0 if baselines is None else _copied(baselines),
            target=_name_of(selector) if callable(selector) else _copied(given.get("target", selector)),
            predictions=at_input,
            baseline_predictions=at_baseline,
            deltas=delta[0],
            report=replace(report, ends=None),  # they are the predictions
            meta=self._igfast_meta(given),
            feature_names=names,
            target_names={c: class_names[c] for c in classes_of(given.get("target")) if c in class_names} or None,
        )

    def _igfast_bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments of `attribute` by name, with its defaults."""
        signature = inspect.signature(self.attribute)
        parameters = [p for p in signature.parameters.values() if p.name not in _IN_THE_RESULT]
        try:
            bound = signature.replace(parameters=parameters).bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentTypeError(
                f"explain takes the arguments of attribute, without {_IN_THE_RESULT}: {error}"
            ) from None
        bound.apply_defaults()
        return dict(bound.arguments)

    def _igfast_meta(self, given: Mapping[str, Any]) -> dict[str, Any]:
        layers = getattr(self, "layer", None) or []
        return {
            "method": type(self).__name__,
            "rule": given["method"] if given["tolerance"] is None else "trapezoids in segments",
            "n_steps": int(given["n_steps"]) if given["tolerance"] is None else None,
            "tolerance": None if given["tolerance"] is None else float(given["tolerance"]),
            "multiply_by_inputs": self.multiplies_by_inputs,
            "model": _name_of(self.forward_func),
            "averaged_over": given["baselines"].n_each if isinstance(given["baselines"], Baselines) else None,
            "baselines_at_layer": isinstance(given["baselines"], AtLayer),
            "layer": ", ".join(
                _layer_name(layer, self.forward_func) for layer in (layers if isinstance(layers, list) else [layers])
            ),
            "versions": {name: version(name) for name in ("igfast", "torch", "captum")},
        }


def tensors_of(forward_func: Callable[..., Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments with tensors in the place of arrays and DataFrames, on the device of the model's parameters.

    Floating arrays become of the dtype of the first floating parameter, because NumPy's default is float64.

    Raises:
        InputTypeError: an array of texts or objects.
    """
    device = device_of(forward_func)
    floating = floating_dtype(forward_func)

    def converted(value: Any, name: str) -> Any:
        if isinstance(value, AtLayer):
            return AtLayer(converted(value.value, name))
        if isinstance(value, tuple):
            return tuple(converted(one, f"{name}[{i}]") for i, one in enumerate(value))
        if hasattr(value, "to_numpy"):  # of pandas and polars
            value = value.to_numpy()
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype.kind not in "biufc":
            raise InputTypeError(f"{name} is an array of {value.dtype}; it must hold numbers")
        tensor = torch.tensor(np.array(value, order="C"), device=device)
        return tensor.to(floating) if floating is not None and tensor.is_floating_point() else tensor

    return {name: converted(value, name) for name, value in asked.items()}


def flattened(attributions: Any) -> list[Tensor]:
    """Returns the tensors in attributions, which may be a tensor, a tuple or a list of either."""
    if isinstance(attributions, Tensor):
        return [attributions]
    return [tensor for part in attributions for tensor in flattened(part)]


def _warn_if_incomplete(deltas: Tensor, changes: Tensor) -> None:
    """Warns if attributions of a layer are far from the change of the output, in the L2 norm over the examples."""
    delta, change = float(deltas.detach().double().norm()), float(changes.detach().double().norm())
    if delta > _LARGE_DELTA * change:
        warn(
            f"the attributions do not sum to the change of the output: their deltas are {delta:.3g} (L2 norm over "
            f"examples), and the change is {change:.3g}. More n_steps may do. Or the baselines also change what passes "
            "beside the layer, as padding does with positions: then a mask token, or a value of the layer "
            "(igfast.baselines.AtLayer), does",
            ConvergenceWarning,
        )


def _copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    if isinstance(value, list):
        return list(map(_copied, value))
    return value.detach().clone() if isinstance(value, Tensor) else value


def _detached(value: Any) -> Any:
    """Returns attributions without the graph that they have if inputs require a gradient."""
    return value.detach() if isinstance(value, Tensor) else type(value)(map(_detached, value))


def _layer_name(layer: nn.Module, forward_func: Any) -> str:
    """Returns a layer's name in its model, and its class; the class alone where the model is not seen."""
    for module in modules_behind(_unwrapped(forward_func)):
        for name, part in module.named_modules():
            if part is layer and name:
                return f"{name} ({type(layer).__name__})"
    return type(layer).__name__


def _unwrapped(forward_func: Any) -> Any:
    """Returns the model that igfast wraps to select an output; other functions as they are."""
    while type(forward_func).__module__.startswith("igfast.") and hasattr(forward_func, "model"):
        forward_func = forward_func.model
    return forward_func


def _name_of(forward_func: Any) -> str:
    forward_func = _unwrapped(forward_func)
    modules = modules_behind(forward_func)
    if modules and not isinstance(forward_func, nn.Module):
        return f"{type(modules[0]).__name__} in {getattr(forward_func, '__name__', type(forward_func).__name__)}"
    return getattr(forward_func, "__name__", type(forward_func).__name__)


def _checked_names(names: Any, inputs: Any) -> tuple[Any, ...] | None:
    """Returns names as a tuple of texts, or one tuple of texts for each example; raises ArgumentError."""
    first = inputs[0] if isinstance(inputs, tuple) and inputs else inputs
    if names is None or not isinstance(first, Tensor) or first.dim() < 2:
        return None  # attribute says what is wrong with such inputs
    rows: list[Any] = list(names) if isinstance(names, Iterable) and not isinstance(names, (str, Mapping)) else [None]
    if all(isinstance(row, str) for row in rows):
        fits, counts = len(rows) in first.shape[1:], f"{len(rows)}"
    elif all(isinstance(row, (list, tuple)) and all(isinstance(one, str) for one in row) for row in rows):
        longest = max(map(len, rows))
        fits, counts = len(rows) == first.shape[0] and longest <= first.shape[1], f"{len(rows)} lists of {longest}"
    else:
        raise ArgumentError("feature_names must be a list of names, or for each example a list of its tokens")
    if not fits:
        raise ArgumentError(f"feature_names has {counts} names, but inputs has shape {tuple(first.shape)}")
    return tuple(row if isinstance(row, str) else tuple(row) for row in rows)


def _names_by_class(names: Any) -> dict[int, str]:
    """Returns names by the number of the class; raises ArgumentError."""
    if names is None:
        return {}
    found = dict(names) if isinstance(names, Mapping) else {}
    if not isinstance(names, (str, Mapping)) and isinstance(names, Iterable):
        found = dict(enumerate(names))
    is_fit = all(isinstance(number, int) and isinstance(name, str) for number, name in found.items())
    if not found or not is_fit:
        raise ArgumentError(f"target_names must be a list of texts, or a dict from numbers to texts; got {names!r}")
    return found
