"""Layer Integrated Gradients with Captum's interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import captum.attr
from captum.log import log_usage
from torch import Tensor, nn

from igfast.attr.integrated_gradients import IntegratedGradients
from igfast.attr.stands_in import StandsIn
from igfast.errors import ArgumentError, ArgumentTypeError
from igfast.explanation.explain import Explains, flattened
from igfast.model.forward import ForwardFunction, with_targets
from igfast.model.modules import number_of
from igfast.model.partial import FromLayer
from igfast.model.state import buffers_restored, undisturbed
from igfast.model.tap import LayerTap
from igfast.request.inputs import Inputs, as_tuple, describe, parse_internal_batch_size
from igfast.request.model_inputs import AtLayer, parse_model_inputs
from igfast.request.options import Lean, Options
from igfast.request.several_targets import parse_targets
from igfast.request.target import Target, parse_target
from igfast.run.attributions import by_target, convergence_delta, scale
from igfast.run.captums import has_own_delta, left_to_captum, why_captums
from igfast.run.integration import Run
from igfast.run.layer_values import from_layer, per_layer
from igfast.run.precision import DEFAULT_STEPS, MAX_STEPS, quadrature_of
from igfast.run.steps import Quadrature

_GRAD_OPTIONS = frozenset({"allow_unused", "materialize_grads"})
_OPTIONS_OF_CAPTUM = frozenset({"create_graph", "retain_graph"})
_CAPTUMS = captum.attr.LayerIntegratedGradients  # under this name, whatever patch_captum() does
_CAPTUMS_GRADIENTS = _CAPTUMS._make_gradient_func
_OF_INPUTS = (captum.attr.IntegratedGradients, IntegratedGradients)  # what `ig` is, before and after patch_captum()


class LayerIntegratedGradients(captum.attr.LayerIntegratedGradients, Explains, metaclass=StandsIn):
    """Attributes a model's output to what a layer gives out or takes in.

    The path leads from the layer's values at the baselines to those at the inputs. Token ids are attributed so: name
    the embedding layer, and sum the attributions over their last dimension.

    A drop-in for `captum.attr.LayerIntegratedGradients`, with the same arguments and results. Only the layer's values
    at the input and the baseline are kept. Path points go through the model in chunks, as in
    `igfast.IntegratedGradients`, and no graph is recorded before the layer.

    Instances hold no state, so threads may share one, and one model. Hooks are removed whatever happens. A layer that
    is called more than once in a forward pass is an error, because no single path leads through the layer. Wrap its
    calls in modules of their own (`torch.nn.Identity`) and name those modules.

    Args:
        forward_func: the model or any function that calls the layer; returns a tensor, (batch, ...).
        layer: a module, or a list of modules of which none gets its values from another one alone.
        device_ids: the GPUs of an `nn.DataParallel` model, if `forward_func` is not that model itself.
        multiply_by_inputs: whether to multiply the integrated gradients by the difference of the layer's values.
        lean, memory_budget, show_progress: as in `igfast.IntegratedGradients`.

    Raises:
        ArgumentError, ArgumentTypeError: as in `igfast.IntegratedGradients`.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3, applied to the rest of the network.
    """

    stands_for = captum.attr.LayerIntegratedGradients
    _igfast_options = Options()  # of instances that another constructor made: a subclass's, or Captum's before pickling

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | list[nn.Module],
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
        *,
        lean: Lean = "auto",
        memory_budget: int | float | str | None = None,
        show_progress: bool = False,
    ) -> None:
        if forward_func is not None and not callable(forward_func):
            raise ArgumentTypeError(f"forward_func must be callable; got {describe(forward_func)}")
        _CAPTUMS.__init__(self, forward_func, layer, device_ids, multiply_by_inputs)
        self._igfast_options = Options(lean, memory_budget, show_progress)

    @log_usage(part_of_slo=True)
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = DEFAULT_STEPS,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        tolerance: float | None = None,
        max_steps: int = MAX_STEPS,
        correct_completeness: bool = True,
        return_report: bool = False,
    ) -> Any:
        """Attributes `forward_func(inputs)[:, target]` to the layer's values.

        Args:
            inputs: a tensor or a tuple of tensors, (batch, *) each, of any dtype; the model gets them as they are.
            baselines: for each input a number, or a tensor of its dtype, of its shape or (1, *). For token ids, the ids
                of padding or mask tokens, say. None stands for zeros. An `igfast.baselines.AtLayer` has the layer's own
                value.
            target: as in `igfast.IntegratedGradients.attribute`.
            additional_forward_args: as in `igfast.IntegratedGradients.attribute`.
            n_steps: as in `igfast.IntegratedGradients.attribute`.
            method: as in `igfast.IntegratedGradients.attribute`.
            internal_batch_size: as in `igfast.IntegratedGradients.attribute`.
            return_convergence_delta: also return how far the attributions are from completeness.
            attribute_to_layer_input: attribute to what the layer takes in (its positional arguments).
            grad_kwargs: {"materialize_grads": True} or {"allow_unused": True} gives tensors without influence
                attribution 0 instead of an error. "create_graph" and "retain_graph" leave the call to Captum's code.
            tolerance: as in `igfast.IntegratedGradients.attribute`.
            max_steps: as in `igfast.IntegratedGradients.attribute`.
            correct_completeness: as in `igfast.IntegratedGradients.attribute`.
            return_report: also return an `igfast.RunReport`.

        Returns:
            For one layer a tensor shaped as the layer's value, or a tuple if the layer has several; for a list of
            layers a list of those. With `return_convergence_delta` or `return_report`, a tuple with the delta and the
            report, as in `igfast.IntegratedGradients.attribute`. The delta sums all attributions of an example.

        Raises:
            LayerError: a layer is not reached, is called several times, or has values that no path leads through.
            InputError, InputTypeError, BaselineError, TargetError, TargetTypeError, ArgumentError, ArgumentTypeError,
                OutputError, OutputTypeError, LeanError, IgfastMemoryError: as in
                `igfast.IntegratedGradients.attribute`.

        Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 1 and 3; the delta is that of Proposition 1.
        """
        arguments = dict(locals())
        if why := why_captums(self, LayerIntegratedGradients) or why_own_gradients(self) or _why_graph(grad_kwargs):
            if isinstance(baselines, AtLayer):
                raise ArgumentError(f"{why}, so baselines must be inputs; got an AtLayer")
            return left_to_captum(why, _CAPTUMS, arguments)
        precision = (tolerance, max_steps, correct_completeness, self.multiplies_by_inputs)
        targets = (parse_target(target),)
        asked = (inputs, baselines, targets, additional_forward_args, attribute_to_layer_input, grad_kwargs)
        quadrature = quadrature_of(method, n_steps, *precision, with_error=return_report)
        size = parse_internal_batch_size(internal_batch_size)
        own_delta = return_convergence_delta and has_own_delta(self, LayerIntegratedGradients)
        with_delta = return_convergence_delta and not own_delta
        run, ((attributions, delta),) = self._igfast_attributed(
            *asked, size, quadrature=quadrature, with_delta=with_delta
        )
        if own_delta:
            given = tuple(flattened(attributions))
            delta = self.compute_convergence_delta(given, baselines, inputs, target, additional_forward_args)
        return run.results(attributions, delta, return_report)

    @log_usage(part_of_slo=True)
    def attribute_targets(
        self,
        inputs: Any,
        targets: Any,
        baselines: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = DEFAULT_STEPS,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        tolerance: float | None = None,
        max_steps: int = MAX_STEPS,
        correct_completeness: bool = True,
        return_report: bool = False,
    ) -> Any:
        """Attributes several targets to the layer's values in one call, as `IntegratedGradients.attribute_targets`.

        Args:
            inputs: as in `attribute`.
            targets: as in `igfast.IntegratedGradients.attribute_targets`.
            baselines: as in `attribute`.
            additional_forward_args: as in `attribute`.
            n_steps: as in `attribute`.
            method: as in `attribute`.
            internal_batch_size: as in `attribute`.
            return_convergence_delta: also return the delta of each target.
            attribute_to_layer_input: as in `attribute`.
            grad_kwargs: as in `attribute`, without "create_graph" and "retain_graph".
            tolerance: as in `igfast.IntegratedGradients.attribute_targets`.
            max_steps: as in `attribute`.
            correct_completeness: as in `attribute`.
            return_report: as in `igfast.IntegratedGradients.attribute_targets`.

        Returns:
            A list with what `attribute` returns for each target. With `return_report`, a tuple of that and the report.

        Raises:
            TargetError, TargetTypeError: as in `igfast.IntegratedGradients.attribute_targets`.
            And whatever `attribute` raises.

        Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 1 and 3.

        Example:
            >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(8, 5))
            >>> explainer = igfast.LayerIntegratedGradients(model, model[0])
            >>> [tuple(part.shape) for part in explainer.attribute_targets(torch.tensor([[3, 5]]), "top2")]
            [(1, 2, 4), (1, 2, 4)]
        """
        if why := why_captums(self, LayerIntegratedGradients) or why_own_gradients(self) or _why_graph(grad_kwargs):
            raise ArgumentError(f"attribute_targets is not Captum's, and calls are left to Captum: {why}")
        precision = (tolerance, max_steps, correct_completeness, self.multiplies_by_inputs)
        parsed = parse_targets(targets)
        asked = (inputs, baselines, parsed, additional_forward_args, attribute_to_layer_input, grad_kwargs)
        quadrature = quadrature_of(method, n_steps, *precision, with_error=return_report)
        size = parse_internal_batch_size(internal_batch_size)
        run, found = self._igfast_attributed(*asked, size, quadrature=quadrature, with_delta=return_convergence_delta)
        return run.results_of_targets(found, return_report)

    @log_usage()
    def compute_convergence_delta(
        self,
        attributions: Any,
        start_point: Any,
        end_point: Any,
        target: Any = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        """Returns how far attributions are from completeness, by Captum's own code.

        Args:
            attributions: of the layer; a tensor or a tuple of tensors, (batch, *) each.
            start_point: the baselines, as `attribute` takes them; not an `igfast.baselines.AtLayer`.
            end_point: the inputs.
            target: as in `attribute`.
            additional_forward_args: as in `attribute`.

        Returns:
            Each example's sum of attributions less F(end_point) - F(start_point), (batch,).

        Raises:
            AssertionError: as in Captum, where the points or the attributions do not fit each other.

        Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, Proposition 1.
        """
        given = (attributions, start_point, end_point, target, additional_forward_args)
        with buffers_restored(self.forward_func):
            delta: Tensor = _CAPTUMS.compute_convergence_delta.__wrapped__(self, *given)
            return delta

    def _igfast_attributed(
        self, *asked: Any, quadrature: Quadrature, with_delta: bool
    ) -> tuple[Run, list[tuple[Any, Tensor | None]]]:
        """Returns the run, and for each target the attributions in Captum's form, and the delta if asked for."""
        found: list[tuple[Any, Tensor | None]] = []
        with undisturbed(self.forward_func):
            with self._igfast_run(*asked) as run:
                layers: FromLayer = run.evaluator  # type: ignore[assignment]
                sums = by_target(run.integrate(quadrature), len(layers.inputs.x))
                ends = run.ends() if with_delta else [None] * len(sums)
                attributions = [scale(run.evaluator, of_target, self.multiplies_by_inputs) for of_target in sums]
            values = layers.values_of_layers()
            for one, at_ends in zip(attributions, ends, strict=True):
                delta = None if at_ends is None else convergence_delta(one, *at_ends)
                shaped = tuple(a.view(x.shape) for a, x in zip(one, values, strict=True))
                found.append((per_layer(shaped, layers, isinstance(self.layer, list)), delta))
        return run, found

    def _igfast_ends(
        self,
        inputs: Any,
        baselines: Any,
        target: Any,
        additional_forward_args: Any,
        attribute_to_layer_input: bool,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Returns F(inputs) and F(baselines), one number for each entry of the output."""
        targets = (parse_target(target),)
        asked = (inputs, baselines, targets, additional_forward_args, attribute_to_layer_input, None)
        with undisturbed(self.forward_func), self._igfast_run(*asked, None) as run:
            return run.ends()[0]

    @contextmanager
    def _igfast_run(
        self,
        inputs: Any,
        baselines: Any,
        targets: tuple[Target, ...] | int,
        args: Any,
        at_input: bool,
        grad_kwargs: dict[str, Any] | None,
        size: int | None,
    ) -> Iterator[Run]:
        """Gives the run of a call, whose layers are hooked during the block."""
        at_layer = baselines if isinstance(baselines, AtLayer) else None
        given = parse_model_inputs(inputs, None if at_layer else baselines)
        forward = self._igfast_forward(given, args, grad_kwargs)
        with self._igfast_options.memory(forward.inputs.device) as memory, self._igfast_tapped(at_input) as tap:
            evaluator = with_targets(from_layer(forward, at_layer, tap, memory), targets)
            kind = (*map(number_of, self._igfast_layers), at_input)  # facts must not keep a layer alive
            yield Run(evaluator, self._igfast_options, memory, size, kind, tuple(self._igfast_layers))

    def _igfast_forward(self, given: Inputs, args: Any, grad_kwargs: dict[str, Any] | None) -> ForwardFunction:
        """Returns the forward function with its checked inputs and arguments."""
        return ForwardFunction(
            forward_func=self.forward_func,
            inputs=given,
            args=as_tuple(args),
            unused_is_zero=_unused_is_zero(grad_kwargs),
        )

    @property
    def _igfast_layers(self) -> list[nn.Module]:
        return self.layer if isinstance(self.layer, list) else [self.layer]

    def _igfast_tapped(self, at_input: bool) -> AbstractContextManager[LayerTap]:
        """Returns a block in which the layers are hooked."""
        device_ids = self.device_ids or getattr(self.forward_func, "device_ids", None)
        return LayerTap(self._igfast_layers, at_input, device_ids).attached()


def why_own_gradients(explainer: captum.attr.LayerIntegratedGradients) -> str:
    """Returns in which way an explainer takes gradients of its own; empty if it does not."""
    if getattr(explainer._make_gradient_func, "__func__", None) is not _CAPTUMS_GRADIENTS:
        return f"{type(explainer).__name__} overrides _make_gradient_func"
    return "" if type(explainer.ig) in _OF_INPUTS else "ig was replaced"


def _why_graph(grad_kwargs: dict[str, Any] | None) -> str:
    asked = {name for name, value in (grad_kwargs or {}).items() if value}
    return "grad_kwargs asks for a graph" if _OPTIONS_OF_CAPTUM & asked else ""


def _unused_is_zero(grad_kwargs: dict[str, Any] | None) -> bool:
    unknown = set(grad_kwargs or {}) - _GRAD_OPTIONS - _OPTIONS_OF_CAPTUM
    if unknown:
        allowed = sorted(_GRAD_OPTIONS | _OPTIONS_OF_CAPTUM)
        raise ArgumentError(f"grad_kwargs may have {allowed}; got {sorted(unknown)}")
    return any((grad_kwargs or {}).values())
