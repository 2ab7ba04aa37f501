"""Neuron Integrated Gradients with Captum's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import captum.attr
import torch
from captum.log import log_usage
from torch import nn

from igfast.attr._forward import parse_additional_args
from igfast.attr._inputs import parse_inputs, parse_internal_batch_size
from igfast.attr._integration import Execution, Lean, Run, scale
from igfast.attr._layer_function import Selector, ToLayer
from igfast.attr._layers import LayerTap
from igfast.attr._state import buffers_restored
from igfast.attr._targets import Target
from igfast.quadrature import quadrature_rule
from igfast.replay import CudaGraph


class NeuronIntegratedGradients(captum.attr.NeuronIntegratedGradients):
    """Attributes a neuron, one number of what a layer gives out or takes in, to a model's inputs.

    A drop-in for `captum.attr.NeuronIntegratedGradients`, with the same arguments and results. The model runs up to the
    layer only. Everything else is as in `igfast.IntegratedGradients`; hooks are removed whatever happens, and threads
    may share an instance and a model.

    Args:
        forward_func: the model or any function that calls the layer.
        layer: a module that is called once in a forward pass.
        device_ids: the GPUs of an `nn.DataParallel` model, if `forward_func` is not that model itself.
        multiply_by_inputs: whether to multiply the integrated gradients by `inputs - baselines`.
        lean, memory_budget, cuda_graph: as in `igfast.IntegratedGradients`.
        show_progress: show a progress bar over path points.

    Raises:
        ArgumentError, ArgumentTypeError: `lean`, `memory_budget` or `cuda_graph` is not one of its values.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3, applied to the network up to the neuron.
    """

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
        cuda_graph: CudaGraph = False,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, multiply_by_inputs)
        self._execution = Execution(lean, memory_budget, show_progress, cuda_graph)

    @log_usage(part_of_slo=True)
    def attribute(
        self,
        inputs: Any,
        neuron_selector: Selector,
        baselines: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        attribute_to_neuron_input: bool = False,
        *,
        return_report: bool = False,
    ) -> Any:
        """Attributes a neuron to `inputs`.

        Args:
            inputs: as in `igfast.IntegratedGradients.attribute`.
            neuron_selector: an int for a layer with values (batch, n); a tuple of ints and slices, one for each
                dimension after the examples, whose region is summed; or a function of the layer's value (of the tuple,
                if it is several tensors) that returns one number per example, (batch,).
            baselines: as in `igfast.IntegratedGradients.attribute`.
            additional_forward_args: as in `igfast.IntegratedGradients.attribute`.
            n_steps: points of the quadrature rule.
            method: the rule, one of `igfast.METHODS`.
            internal_batch_size: at most this many path points go through the model at a time; None lets igfast choose.
            attribute_to_neuron_input: select from what the layer takes in (its positional arguments).
            return_report: also return an `igfast.RunReport`.

        Returns:
            The attributions, shaped as `inputs`, as in `igfast.IntegratedGradients.attribute`; with `return_report`, a
            tuple of them and the report.

        Raises:
            LayerError: the layer is not reached, is called several times, or has values that have no gradient.
            SelectorError, SelectorTypeError: `neuron_selector` does not select one number per example.
            InputError, InputTypeError, BaselineError, ArgumentError, ArgumentTypeError, OutputError,
            IgfastMemoryError: as in `igfast.IntegratedGradients.attribute`.

        Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 1 and 3.
        """
        device_ids = self.device_ids or getattr(self.forward_func, "device_ids", None)
        with torch.inference_mode(False), torch.no_grad(), buffers_restored(self.forward_func):
            parsed = parse_inputs(inputs, baselines)
            rule = quadrature_rule(method, n_steps)
            size = parse_internal_batch_size(internal_batch_size)
            with (
                self._execution.memory(parsed.device) as memory,
                LayerTap([self.layer], attribute_to_neuron_input, device_ids).attached() as tap,
            ):
                evaluator = ToLayer(
                    forward_func=self.forward_func,
                    inputs=parsed,
                    args=parse_additional_args(additional_forward_args, parsed.batch, parsed.joint),
                    target=Target(),
                    lean=self._execution.lean_for(self.forward_func, [self.layer]),
                    tap=tap,
                    selector=neuron_selector,
                )
                run = Run(evaluator, self._execution, memory)
                integral = run.integrate(
                    rule,
                    size,
                    with_ends=False,
                    kind=(id(self.layer), attribute_to_neuron_input),  # not the layer: it may be the model itself
                )
                attributions, _ = scale(parsed, integral, self.multiplies_by_inputs)
            return run.results(parsed.format(attributions), None, return_report)
