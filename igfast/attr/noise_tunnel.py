"""Attributes samples that Captum's `NoiseTunnel` draws: noisy inputs, random baselines, a random point of each path."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import captum.attr
import numpy as np
import torch
from captum.attr import NoiseTunnel
from captum.attr._utils.common import _format_callable_baseline
from captum.log import log_usage
from torch import Tensor

from igfast.errors import ArgumentError, LayerError, warn
from igfast.interrupts import must_pass
from igfast.model.call_inputs import in_dtype_of_baselines
from igfast.model.partial import FromLayer, Selector
from igfast.model.state import undisturbed
from igfast.request.inputs import as_tuple, parse_inputs
from igfast.request.model_inputs import AtLayer, parse_model_inputs
from igfast.request.target import entries_of, parse_target
from igfast.rng import random_state_kept
from igfast.run.attributions import convergence_delta
from igfast.run.layer_values import are_rows, flat, per_layer, read_layers
from igfast.run.path import points_at
from igfast.run.plan import limits_of
from igfast.run.sampled_points import SampledPoints

_TUNNEL = NoiseTunnel  # under this name, whatever users put in its place


def through_tunnel(
    sampled: captum.attr.GradientAttribution, inputs: Any, baselines: Any, n_samples: int, stdevs: Any, **options: Any
) -> Any:
    """Returns the mean over noisy inputs and random baselines, which Captum's `NoiseTunnel` draws."""
    if isinstance(n_samples, bool) or not isinstance(n_samples, (int, np.integer)) or n_samples < 1:
        raise ArgumentError(f"n_samples must be an integer of at least 1; got {n_samples!r}")
    tunnel: Any = _TUNNEL(sampled)
    return tunnel.attribute.__wrapped__(
        tunnel,
        inputs,
        nt_type="smoothgrad",
        nt_samples=int(n_samples),
        stdevs=stdevs,
        draw_baseline_from_distrib=True,
        baselines=_format_callable_baseline(baselines, inputs),
        **options,
    )


class _Sampled(captum.attr.GradientAttribution):
    """Attributes noisy examples at one random point each, as `NoiseTunnel` asks for it.

    `source` has the inputs and the further arguments of the caller's own call.
    """

    def __init__(self, explainer: Any, source: tuple[Any, Any]) -> None:
        super().__init__(explainer.forward_func)
        self.explainer, self.source = explainer, source

    def points_of(self, inputs: Any) -> SampledPoints:
        """Returns a random point for each noisy example, drawn and rounded as Captum's."""
        first, original = as_tuple(inputs)[0], as_tuple(self.source[0])[0]
        drawn = torch.tensor(np.random.uniform(0.0, 1.0, len(first)), dtype=first.dtype, device=first.device)
        return SampledPoints(drawn.double(), len(first) // max(1, len(original)))

    def source_as(self, inputs: Any) -> tuple[Any, Any]:
        """Returns the caller's own call with inputs of the noisy examples' dtypes: noise may make them wider."""
        original, args = self.source
        cast = tuple(x.to(noisy.dtype) for x, noisy in zip(as_tuple(original), as_tuple(inputs), strict=True))
        return cast if isinstance(original, tuple) else cast[0], args

    def has_convergence_delta(self) -> bool:
        """Returns whether there is a delta."""
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether gradients are multiplied."""
        return bool(self.explainer.multiplies_by_inputs)


class OfInputs(_Sampled):
    """Attributes to the inputs."""

    @log_usage()
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Returns the attributions of each noisy example."""
        start = _single(inputs, baselines)
        inputs = in_dtype_of_baselines(inputs, start, self.explainer.forward_func)
        asked = (inputs, start, target, additional_forward_args)
        points = self.points_of(inputs)
        attributions, delta = self.explainer._igfast_attributed_with(
            points, *asked, return_convergence_delta, self.source_as(inputs)
        )
        return attributions if delta is None else (attributions, delta)


class OfNeuron(_Sampled):
    """Attributes a neuron to the inputs."""

    def __init__(self, explainer: Any, source: tuple[Any, Any], selector: Selector, at_input: bool) -> None:
        super().__init__(explainer, source)
        self.selector, self.at_input = selector, at_input

    def has_convergence_delta(self) -> bool:
        """Returns whether there is a delta."""
        return False

    @log_usage()
    def attribute(self, inputs: Any, baselines: Any = None, additional_forward_args: Any = None) -> Any:
        """Returns the attributions of each noisy example."""
        start = _single(inputs, baselines)
        inputs = in_dtype_of_baselines(inputs, start, self.explainer.forward_func)
        asked = (inputs, self.selector, start, additional_forward_args, self.at_input)
        return self.explainer._igfast_attributed_with(self.points_of(inputs), *asked, source=self.source_as(inputs))


class OfLayer(_Sampled):
    """Attributes to a layer, in groups of whole copies of the caller's own examples where memory asks for it.

    A group is as large as a first chunk of `igfast.LayerIntegratedGradients`. If the outputs or the layer's values of
    one copy alone are others than among several copies, all samples go through the model at once, as in Captum.
    """

    @log_usage()
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
    ) -> Any:
        """Returns the attributions of each noisy example to the layer's values."""
        points = self.points_of(inputs)
        asked = (points.alphas, inputs, _single(inputs, baselines), additional_forward_args)
        how: dict[str, Any] = {"at_input": attribute_to_layer_input, "with_delta": return_convergence_delta}
        groups = self._groups(points, *asked[1:], attribute_to_layer_input)
        if groups is None:
            attributions, delta = self._attributed_at(*asked, target=target, **how)
        else:
            parts = (self._of_group(rows, len(points.alphas), asked, target, how) for rows in groups)
            attributions, delta = _put_together(parts, groups, len(points.alphas))
        return attributions if delta is None else (attributions, delta)

    def _of_group(
        self, rows: Tensor, n_rows: int, asked: tuple[Any, ...], target: Any, how: dict[str, Any]
    ) -> tuple[Any, Tensor | None]:
        if isinstance(target, list) and len(target) == n_rows:
            target = [target[row] for row in rows.tolist()]
        given: list[Any] = [of_rows(one, rows, n_rows) for one in asked]
        found: tuple[Any, Tensor | None] = self._attributed_at(*given, target=of_rows(target, rows, n_rows), **how)
        return found

    def _attributed_at(
        self, alphas: Tensor, inputs: Any, baselines: Any, args: Any, *, target: Any, at_input: bool, with_delta: bool
    ) -> tuple[Any, Tensor | None]:
        """Returns the gradient at the layer where the inputs are at alphas of their paths, and the delta.

        The gradient is multiplied by the difference of the layer's values at the inputs and the baselines.
        """
        with undisturbed(self.explainer.forward_func):
            given = parse_inputs(inputs, baselines)
            points = points_at(given, alphas)
            with self.explainer._igfast_run(
                points, AtLayer(0.0), (parse_target(target),), args, at_input, None, None
            ) as run:
                layers: FromLayer = run.evaluator
                grads = run.integrate(SampledPoints(torch.ones(layers.inputs.batch, dtype=torch.float64)))
            shaped = [grad.view(x.shape) for grad, x in zip(grads, layers.values_of_layers(), strict=True)]
            if with_delta and any(len(grad) != len(alphas) for grad in shaped):
                raise LayerError(
                    f"a delta takes one entry of the layer for each sample, {len(alphas)}; got {len(shaped[0])}"
                )
            if self.multiplies_by_inputs:
                starts = tuple(torch.empty_like(x).copy_(b) for x, b in zip(given.x, given.baselines, strict=True))
                ends = zip(*(self._values(xs, args, at_input)[0] for xs in (given.x, starts)), strict=True)
                shaped = [grad * (value - start) for grad, (value, start) in zip(shaped, ends, strict=True)]
            delta = None
            if with_delta:
                delta = convergence_delta(
                    tuple(shaped), *self.explainer._igfast_ends(inputs, baselines, target, args, at_input)
                )
        return per_layer(tuple(shaped), layers, False), delta

    def _values(self, xs: Any, args: Any, at_input: bool) -> tuple[tuple[Tensor, ...], Any]:
        """Returns the layers' values at some inputs, and the output there."""
        given = parse_model_inputs(xs, None)
        forward = self.explainer._igfast_forward(given, args, None)
        with (
            self.explainer._igfast_options.memory(forward.inputs.device) as memory,
            self.explainer._igfast_tapped(at_input) as tap,
        ):
            values, output = read_layers(forward, given.x, tap, memory)
            return flat(values), output

    def _are_the_same_alone(
        self, n_alone: int, at_input: bool, alphas: Tensor, inputs: Any, baselines: Any, args: Any
    ) -> bool:
        """Returns whether the first and the last points alone have the layers' values and outputs as among all."""
        n_rows = len(alphas)
        with undisturbed(self.explainer.forward_func), random_state_kept(alphas.device):
            points = points_at(parse_inputs(inputs, baselines), alphas)
            try:
                values, output = self._values(points, args, at_input)
                if entries_of(output) != n_rows:
                    return False
                for rows in (range(n_alone), range(n_rows - n_alone, n_rows)):
                    of_points, of_args = (of_rows(given, torch.tensor(rows), n_rows) for given in (points, args))
                    alone, output_alone = self._values(of_points, of_args, at_input)
                    pairs = zip((output, *values), (output_alone, *alone), strict=True)
                    if not all(are_rows(each, among, rows, n_rows) for among, each in pairs):
                        return False
            except Exception as error:  # a model may raise anything for rows that it was not given
                if must_pass(error):
                    raise
                return False
        return True

    def _groups(
        self, points: SampledPoints, inputs: Any, baselines: Any, args: Any, at_input: bool
    ) -> list[Tensor] | None:
        """Returns the rows of each group; None where all rows go at once."""
        n_rows, n_copies = len(points.alphas), points.n_copies
        tensors = [one for one in (*as_tuple(inputs), *as_tuple(args)) if isinstance(one, Tensor) and one.dim()]
        if n_rows == 0 or any(len(one) != n_rows for one in tensors):
            return None
        n_own = n_rows // n_copies
        of_copy = n_own * sum(one[0].nbytes for one in as_tuple(inputs))
        n_together = max(1, limits_of(points.alphas.device.type, False).first // max(of_copy, 1))
        if n_together >= n_copies:
            return None
        in_copies = torch.arange(n_rows).view(n_own, n_copies).T
        groups = [rows.flatten() for rows in in_copies.split(n_together)]
        given: list[Any] = [of_rows(one, groups[0], n_rows) for one in (points.alphas, inputs, baselines, args)]
        if not self._are_the_same_alone(n_own, at_input, *given):
            warn(
                "the output of one example depends on the others in the batch, or changes from call to call, so all "
                "samples went through the model at once, as in Captum; this takes more memory"
            )
            return None
        return groups


def of_rows(given: Any, rows: Tensor, n_rows: int) -> Any:
    """Returns some rows of a tensor that has `n_rows`, also of those in a tuple; anything else as it is."""
    if isinstance(given, tuple) and any(isinstance(one, Tensor) for one in given):
        return tuple(of_rows(one, rows, n_rows) for one in given)
    if isinstance(given, Tensor) and given.dim() > 0 and len(given) == n_rows:
        return given.index_select(0, rows.to(given.device))
    return given


def _put_together(
    parts: Iterable[tuple[Any, Tensor | None]], groups: list[Tensor], n_rows: int
) -> tuple[Any, Tensor | None]:
    """Returns the attributions and deltas of all rows, each group's put in its place as soon as it is there."""
    found: list[Tensor] = []
    for (attributions, delta), rows in zip(parts, groups, strict=True):
        is_one = isinstance(attributions, Tensor)
        of_group = [*as_tuple(attributions), *([] if delta is None else [delta])]
        if not found:
            found = [one.new_empty((len(one) // len(rows) * n_rows, *one.shape[1:])) for one in of_group]
        for whole, one in zip(found, of_group, strict=True):
            whole.unflatten(0, (n_rows, -1))[rows.to(one.device)] = one.unflatten(0, (len(rows), -1))
    with_delta = delta is not None
    tensors = tuple(found[:-1] if with_delta else found)
    return tensors[0] if is_one else tensors, found[-1] if with_delta else None


def _single(inputs: Any, baselines: Any) -> Any:
    """Returns the baselines in the form of the inputs: `NoiseTunnel` makes a tuple of one tensor."""
    is_one = isinstance(baselines, tuple) and len(baselines) == 1 and not isinstance(inputs, tuple)
    return baselines[0] if is_one else baselines
