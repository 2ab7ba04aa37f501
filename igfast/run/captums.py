"""Leaves calls that igfast does not improve to Captum's own code: the same numbers, graph and cost."""

from __future__ import annotations

import time
from types import FunctionType
from typing import Any

import captum._utils.common
import captum._utils.gradient
import captum.attr._core.integrated_gradients
import captum.attr._utils.approximation_methods
import captum.attr._utils.common
import torch
from torch import Tensor

from igfast.errors import ArgumentError, LeanError, warn
from igfast.model.state import buffers_restored
from igfast.request.inputs import as_tuple
from igfast.request.options import Options
from igfast.request.several_baselines import Baselines
from igfast.run.report import LeanReport, RunReport

_OURS = {"tolerance", "max_steps", "correct_completeness", "return_report"}
_INTEGRAL = captum.attr.IntegratedGradients._attribute  # whatever patch_captum() does
_GRAD = torch.autograd.grad
_FUNCTIONS = [
    (module, {name: value for name, value in vars(module).items() if isinstance(value, FunctionType)})
    for module in (
        captum._utils.common,
        captum._utils.gradient,
        captum.attr._core.integrated_gradients,
        captum.attr._utils.approximation_methods,
        captum.attr._utils.common,
    )
]


def has_own_delta(explainer: Any, ours: type) -> bool:
    """Returns whether an explainer computes convergence deltas in a way of its own, and not in that of `ours`."""
    return getattr(explainer.compute_convergence_delta, "__func__", None) is not ours.compute_convergence_delta  # type: ignore[attr-defined]


def why_captums(explainer: object, ours: type) -> str:
    """Returns why the calls of any explainer of igfast's are left to Captum's own code; empty if they are not.

    Args:
        explainer: of `ours`; or of Captum's class, where a subclass that was defined before `patch_captum` calls the
            method that `ours` has by Captum's name.
        ours: the class of the method that is called.
    """
    if ours not in type(explainer).__mro__:
        return f"{type(explainer).__name__} derives from Captum's class"
    if torch.autograd.grad is not _GRAD:
        return "torch.autograd.grad was replaced"
    for module, functions in _FUNCTIONS:
        for name, function in functions.items():
            if getattr(module, name, None) is not function:
                return f"{module.__name__}.{name} was replaced"
    return ""


def why_integral_captums(explainer: Any, ours: type) -> str:
    """Returns, beside what `why_captums` does, why an explainer's integral is its own; empty if it is not."""
    if why := why_captums(explainer, ours):
        return why
    if getattr(explainer._attribute, "__func__", None) is not _INTEGRAL:
        return f"{type(explainer).__name__} overrides _attribute"
    return why_own_gradient_func(explainer)


def why_own_gradient_func(explainer: Any) -> str:
    """Returns why an explainer takes gradients in a way of its own; empty if it does not."""
    return "" if explainer.gradient_func is captum._utils.gradient.compute_gradients else "gradient_func was replaced"


def check_left_to_captum(options: Options, why: str) -> None:
    """Raises LeanError if lean execution is required, and warns if there is a budget: Captum's code has neither."""
    if options.lean is True:
        raise LeanError(f"lean=True, but lean execution is not possible: {why}")
    if options.memory_budget is not None:
        warn(f"memory_budget has no effect, because the call is left to Captum's own code: {why}")


def sampled_by_captum(why: str, captums: type, given: dict[str, Any]) -> Any:
    """Returns what `attribute` of one of Captum's GradientSHAPs returns; arguments as in `left_to_captum`."""
    check_left_to_captum(getattr(given["self"], "_igfast_options", Options()), why)
    return captums.attribute.__wrapped__(**given)  # type: ignore[attr-defined]


def left_to_captum(why: str, captums: type, given: dict[str, Any]) -> Any:
    """Returns what Captum's own `attribute` returns for a call, with a report if the call asks for one.

    Args:
        why: why the call is left to Captum, for the report and for errors.
        captums: Captum's class.
        given: the arguments of igfast's `attribute` by name, `self` and `return_report` among them.

    Raises:
        LeanError: lean execution is required.
        ArgumentError: Captum does not have the quadrature rule, or `tolerance`.
    """
    arguments = {name: value for name, value in given.items() if name not in _OURS}
    check_left_to_captum(getattr(given["self"], "_igfast_options", Options()), why)
    if given["tolerance"] is not None:
        raise ArgumentError(f"tolerance is not Captum's, and the call is left to Captum: {why}. Pass n_steps instead")
    if isinstance(given["baselines"], Baselines):
        raise ArgumentError(f"igfast.Baselines are not Captum's, and the call is left to Captum: {why}")
    if given["method"] == "trapezoid":
        raise ArgumentError(f"method='trapezoid' is not one of Captum's rules, and the call is left to Captum: {why}")
    began = time.perf_counter()
    with buffers_restored(given["self"].forward_func):
        result = captums.attribute.__wrapped__(**arguments)  # type: ignore[attr-defined]
    if not given["return_report"]:
        return result
    report = RunReport(
        n_rows=0,
        n_evaluations=0,
        chunks={},
        channels_last=False,
        lean=LeanReport(why, {}, {}),
        peak_bytes=None,
        budget_bytes=None,
        seconds=time.perf_counter() - began,
        device=next((str(x.device) for x in as_tuple(given["inputs"]) if isinstance(x, Tensor)), "unknown"),
        kernels="none",
        notes=(f"computed by Captum's own code: {why}",),
    )
    return (*result, report) if given.get("return_convergence_delta") else (result, report)
