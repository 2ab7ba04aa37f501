"""Neuron Integrated Gradients with Captum's interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import captum.attr
from captum.log import log_usage
from torch import Tensor, nn

from igfast.attr.stands_in import StandsIn
from igfast.errors import ArgumentTypeError
from igfast.explanation.explain import Explains
from igfast.model.call_inputs import parsed_for
from igfast.model.modules import number_of
from igfast.model.partial import Selector, ToLayer, parse_selector
from igfast.model.state import undisturbed
from igfast.model.tap import LayerTap
from igfast.request.inputs import as_tuple, describe, parse_inputs, parse_internal_batch_size
from igfast.request.options import Lean, Options
from igfast.request.target import Target
from igfast.run.attributions import scale, scaled_with_graph, takes_graph
from igfast.run.captums import left_to_captum, why_captums
from igfast.run.integration import Run
from igfast.run.precision import DEFAULT_STEPS, MAX_STEPS, quadrature_of
from igfast.run.steps import Quadrature

_CAPTUMS = captum.attr.NeuronIntegratedGradients  # under this name, whatever patch_captum() does


class NeuronIntegratedGradients(captum.attr.NeuronIntegratedGradients, Explains, metaclass=StandsIn):
    """Attributes a neuron, one number of what a layer gives out or takes in, to a model's inputs.

    A drop-in for `captum.attr.NeuronIntegratedGradients`, with the same arguments and results. What comes after the
    layer is computed without a graph. Hooks are removed whatever happens, and threads may share an instance and a
    model. Everything else is as in `igfast.IntegratedGradients`.

    Args:
        forward_func: the model or any function that calls the layer.
        layer: a module that is called once in a forward pass.
        device_ids: the GPUs of an `nn.DataParallel` model, if `forward_func` is not that model itself.
        multiply_by_inputs: whether to multiply the integrated gradients by `inputs - baselines`.
        lean, memory_budget, show_progress: as in `igfast.IntegratedGradients`.

    Raises:
        ArgumentError, ArgumentTypeError: as in `igfast.IntegratedGradients`.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3, applied to the network up to the neuron.
    """

    stands_for = captum.attr.NeuronIntegratedGradients
    _igfast_options = Options()  # of instances that another constructor made: a subclass's, or Captum's before pickling

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
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
        neuron_selector: Selector,
        baselines: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = DEFAULT_STEPS,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        attribute_to_neuron_input: bool = False,
        *,
        tolerance: float | None = None,
        max_steps: int = MAX_STEPS,
        correct_completeness: bool = True,
        return_report: bool = False,
    ) -> Any:
        """Attributes a neuron to `inputs`.

        Args:
            inputs: as in `igfast.IntegratedGradients.attribute`.
            neuron_selector: an int for a layer with values (batch, n). A tuple of ints and slices, one for each
                dimension after the examples, sums a region. A function of the layer's value (of the tuple, if there are
                several tensors) returns one number per example, (batch,), or one for all of them.
            baselines: as in `igfast.IntegratedGradients.attribute`.
            additional_forward_args: as in `igfast.IntegratedGradients.attribute`.
            n_steps: as in `igfast.IntegratedGradients.attribute`.
            method: as in `igfast.IntegratedGradients.attribute`.
            internal_batch_size: as in `igfast.IntegratedGradients.attribute`.
            attribute_to_neuron_input: select from what the layer takes in (its positional arguments).
            tolerance: as in `igfast.IntegratedGradients.attribute`.
            max_steps: as in `igfast.IntegratedGradients.attribute`.
            correct_completeness: as in `igfast.IntegratedGradients.attribute`.
            return_report: also return an `igfast.RunReport`.

        Returns:
            The attributions, or a tuple of attributions and report, as in `igfast.IntegratedGradients.attribute`.

        Raises:
            LayerError: the layer is not reached, is called several times, or has values that have no gradient.
            SelectorError, SelectorTypeError: `neuron_selector` does not select one number per example.
            InputError, InputTypeError, BaselineError, ArgumentError, ArgumentTypeError, OutputError, LeanError,
                IgfastMemoryError: as in `igfast.IntegratedGradients.attribute`.

        Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 1 and 3.
        """
        arguments = dict(locals())
        if why := why_captums(self, NeuronIntegratedGradients):
            return left_to_captum(why, _CAPTUMS, arguments)
        precision = (tolerance, max_steps, correct_completeness, self.multiplies_by_inputs, baselines)
        asked = (inputs, neuron_selector, baselines, additional_forward_args, attribute_to_neuron_input)
        quadrature = quadrature_of(method, n_steps, *precision, with_error=return_report)
        size = parse_internal_batch_size(internal_batch_size)
        return self._igfast_attributed_with(quadrature, *asked, size, return_report)

    def _igfast_attributed_with(
        self,
        quadrature: Quadrature,
        inputs: Any,
        selector: Selector,
        baselines: Any,
        args: Any,
        at_input: bool,
        size: int | None = None,
        return_report: bool = False,
        source: tuple[Any, Any] | None = None,
    ) -> Any:
        """Returns what `attribute` returns, for a call that integrates in its own way; `source` as in `_igfast_run`."""
        multiplies = self.multiplies_by_inputs and not quadrature.multiplies_itself
        with_graph = multiplies and takes_graph(inputs, baselines)
        with (
            undisturbed(self.forward_func),
            self._igfast_run(inputs, selector, baselines, args, at_input, size, source) as run,
        ):
            sums = run.integrate(quadrature)
            attributions = scale(run.evaluator, sums, multiplies and not with_graph)
        if with_graph:
            attributions = scaled_with_graph(attributions, inputs, baselines)
        return run.results(run.evaluator.inputs.format(attributions), None, return_report)

    def _igfast_ends(
        self,
        inputs: Any,
        neuron_selector: Selector,
        baselines: Any,
        additional_forward_args: Any,
        attribute_to_neuron_input: bool,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Returns the neuron's values at the inputs and the baselines, one for each example."""
        asked = (inputs, neuron_selector, baselines, additional_forward_args, attribute_to_neuron_input)
        with undisturbed(self.forward_func), self._igfast_run(*asked, None) as run:
            return run.ends()[0]

    @contextmanager
    def _igfast_run(
        self,
        inputs: Any,
        selector: Selector,
        baselines: Any,
        args: Any,
        at_input: bool,
        size: int | None,
        source: tuple[Any, Any] | None = None,
    ) -> Iterator[Run]:
        """Gives the run of a call, whose layer is hooked during the block.

        `source` has the inputs and further arguments of the caller's own call, if the inputs are noisy copies.
        """
        device_ids = self.device_ids or getattr(self.forward_func, "device_ids", None)
        parsed, several = parsed_for(self.forward_func, inputs, baselines)
        tapped = LayerTap([self.layer], at_input, device_ids, is_path=False).attached()
        with self._igfast_options.memory(parsed.device) as memory, tapped as tap:
            evaluator = ToLayer(
                forward_func=self.forward_func,
                inputs=parsed,
                args=as_tuple(args),
                targets=(Target(),),
                tap=tap,
                selector=selector,
            )
            # Facts must not keep a layer alive. Functions that select cannot be told apart.
            kind = None if callable(selector) else (number_of(self.layer), at_input, str(parse_selector(selector)))
            own_call = None
            if source is not None:
                own_call = replace(evaluator, inputs=parse_inputs(source[0], None), args=as_tuple(source[1]))
            yield Run(evaluator, self._igfast_options, memory, size, kind, (self.layer,), several, own_call)
