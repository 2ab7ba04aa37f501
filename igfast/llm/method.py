"""Reads which method attributes a language model, and the arguments that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import captum.attr
import numpy as np
from torch import nn

from igfast.attr import LayerIntegratedGradients
from igfast.attr.layer import why_own_gradients
from igfast.errors import ArgumentError, ArgumentTypeError, LayerError
from igfast.request.inputs import parse_internal_batch_size
from igfast.request.options import Options
from igfast.run.captums import why_captums
from igfast.run.precision import DEFAULT_STEPS, MAX_STEPS, quadrature_of
from igfast.run.quadrature import Rule
from igfast.run.steps import FixedSteps, Quadrature

_CAPTUMS = captum.attr.LayerIntegratedGradients, captum.attr.LayerGradientXActivation  # whatever patch_captum() does
_OF_GRADIENT = {"attribute_to_layer_input": False, "grad_kwargs": None}
_OF_INTEGRAL = {
    **_OF_GRADIENT,
    "baselines": None,
    "n_steps": DEFAULT_STEPS,
    "method": "gausslegendre",
    "internal_batch_size": None,
    "tolerance": None,
    "max_steps": MAX_STEPS,
    "correct_completeness": True,
}


@dataclass(frozen=True)
class Asked:
    """How one call integrates; the attributes are those of `igfast.LayerIntegratedGradients.attribute`."""

    quadrature: Quadrature
    baselines: Any
    internal_batch_size: int | None
    at_input: bool
    grad_kwargs: dict[str, Any] | None
    has_tolerance: bool


@dataclass(frozen=True)
class Method:
    """A method that goes from a layer's value to the output.

    Attributes:
        layer: where the tokens' values are.
        device_ids: as in `igfast.LayerIntegratedGradients`.
        multiplied: whether gradients are multiplied by the layer's value, or its difference from the baseline.
        options: how the model is run.
        is_gradient: whether it is the gradient at the input, without a path.
    """

    layer: nn.Module
    device_ids: list[int] | None
    multiplied: bool
    options: Options
    is_gradient: bool

    @classmethod
    def of(cls, attr_method: Any) -> Method | None:
        """Returns Captum's or igfast's method; None for another one, or a subclass that attributes in its own way.

        Raises LayerError if the method has several layers.
        """
        own = {theirs.attribute for theirs in (*_CAPTUMS, LayerIntegratedGradients)}
        if not isinstance(attr_method, _CAPTUMS) or type(attr_method).attribute not in own:
            return None
        is_integral = isinstance(attr_method, _CAPTUMS[0])
        if why_captums(attr_method, type(attr_method)) or (is_integral and why_own_gradients(attr_method)):
            return None
        layer = attr_method.layer
        if isinstance(layer, list):
            if len(layer) != 1:
                raise LayerError(f"attr_method must have one layer to attribute tokens at; got {len(layer)}")
            (layer,) = layer
        options = getattr(attr_method, "_igfast_options", Options())
        is_gradient = isinstance(attr_method, _CAPTUMS[1])
        return cls(layer, attr_method.device_ids, attr_method.multiplies_by_inputs, options, is_gradient)

    def asked(self, given: dict[str, Any], with_error: bool = False) -> Asked:
        """Returns how a call integrates, from its keyword arguments; raises for those that the method does not take."""
        allowed = _OF_GRADIENT if self.is_gradient else _OF_INTEGRAL
        unknown = sorted(set(given) - set(allowed))
        if unknown:
            raise ArgumentTypeError(f"attribute got {unknown}; this attr_method takes {sorted(allowed)}")
        asked = {**_OF_INTEGRAL, **given}
        if self.is_gradient:
            quadrature: Quadrature = FixedSteps(Rule(np.ones(1), np.ones(1)))
        else:
            if asked["tolerance"] is not None and not self.multiplied:
                raise ArgumentError("tolerance is for an attr_method with multiply_by_inputs=True; pass n_steps")
            quadrature = quadrature_of(
                asked["method"],
                asked["n_steps"],
                asked["tolerance"],
                asked["max_steps"],
                asked["correct_completeness"],
                True,
                with_error=with_error,
            )
        unused = {name: value for name, value in (asked["grad_kwargs"] or {}).items() if not name.endswith("_graph")}
        return Asked(
            quadrature,
            asked["baselines"],
            parse_internal_batch_size(asked["internal_batch_size"]),
            bool(asked["attribute_to_layer_input"]),
            unused,
            asked["tolerance"] is not None,
        )
