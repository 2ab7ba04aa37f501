"""GradientSHAP with Captum's interface and distribution: gradients at random points, in chunks that fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import captum.attr
from captum.log import log_usage
from torch import nn

from igfast.attr.integrated_gradients import IntegratedGradients
from igfast.attr.layer import LayerIntegratedGradients
from igfast.attr.neuron import NeuronIntegratedGradients
from igfast.attr.noise_tunnel import OfInputs, OfLayer, OfNeuron, through_tunnel
from igfast.attr.stands_in import StandsIn
from igfast.errors import ArgumentError
from igfast.model.partial import Selector
from igfast.request.options import Lean, Options
from igfast.run.captums import sampled_by_captum, why_captums, why_own_gradient_func


class GradientShap(captum.attr.GradientShap, metaclass=StandsIn):
    """Attributes a model's output to its inputs by gradients at random points of random paths.

    A path leads from a random baseline to the input with noise.

    A drop-in for `captum.attr.GradientShap`: the same arguments, and for the same seeds of NumPy and PyTorch the same
    random draws, and the same results up to rounding. The samples go through the model in chunks that fit in memory,
    not all at once. An instance with a replaced `gradient_func` is left to Captum's own code.

    Args:
        forward_func: as in `igfast.IntegratedGradients`.
        multiply_by_inputs: whether to multiply gradients by (inputs - baselines).
        lean, memory_budget, show_progress: as in `igfast.IntegratedGradients`.

    Raises:
        ArgumentError, ArgumentTypeError: as in `igfast.IntegratedGradients`.

    Source: Lundberg and Lee 2017, arXiv:1705.07874, and Captum's implementation, for the distribution; the expectation
        is that of Erion and others 2021, arXiv:1906.10670.

    Example:
        >>> explainer = igfast.GradientShap(torch.nn.Linear(3, 2))
        >>> explainer.attribute(torch.ones(1, 3), torch.rand(10, 3), n_samples=20, target=0).shape
        torch.Size([1, 3])
    """

    stands_for = captum.attr.GradientShap
    _igfast_options = Options()  # of instances that another constructor made: a subclass's, or Captum's before pickling

    def __init__(
        self,
        forward_func: Callable[..., Any],
        multiply_by_inputs: bool = True,
        *,
        lean: Lean = "auto",
        memory_budget: int | float | str | None = None,
        show_progress: bool = False,
    ) -> None:
        GradientShap.stands_for.__init__(self, forward_func, multiply_by_inputs)
        self._igfast_options = Options(lean, memory_budget, show_progress)
        GradientShap._igfast_explainer(self)  # checks the other arguments

    def _igfast_explainer(self) -> IntegratedGradients:
        return IntegratedGradients(self.forward_func, self.multiplies_by_inputs, **vars(self._igfast_options))

    @log_usage(part_of_slo=True)
    def attribute(
        self,
        inputs: Any,
        baselines: Any,
        n_samples: int = 5,
        stdevs: float | tuple[float, ...] = 0.0,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Attributes `forward_func(inputs)[:, target]` to `inputs`.

        Args:
            inputs: as in `igfast.IntegratedGradients.attribute`.
            baselines: the distribution: a tensor (K, *features), a tuple of one for each input, or a function of the
                inputs (or of none) that returns that.
            n_samples: random points of each example.
            stdevs: of the noise that is added to the inputs; one, or one for each input.
            target: as in `igfast.IntegratedGradients.attribute`.
            additional_forward_args: as in `igfast.IntegratedGradients.attribute`.
            return_convergence_delta: also return the delta of each sample, (batch * n_samples,).

        Returns:
            The attributions, or a tuple of attributions and deltas.

        Raises:
            What `igfast.IntegratedGradients.attribute` and Captum's `NoiseTunnel` raise.
        """
        arguments = dict(locals())
        if why := why_captums(self, GradientShap) or why_own_gradient_func(self):
            return sampled_by_captum(why, GradientShap.stands_for, arguments)
        sampled = OfInputs(self._igfast_explainer(), (inputs, additional_forward_args))
        return through_tunnel(
            sampled,
            inputs,
            baselines,
            n_samples,
            stdevs,
            target=target,
            additional_forward_args=additional_forward_args,
            return_convergence_delta=return_convergence_delta,
        )


class LayerGradientShap(captum.attr.LayerGradientShap, metaclass=StandsIn):
    """Attributes a model's output to a layer's values, by gradients at random inputs.

    A drop-in for `captum.attr.LayerGradientShap`, as `igfast.GradientShap` is for Captum's. All samples go through the
    model at once if an additional tensor has another first dimension than the inputs, and, with a warning, if an
    example's values depend on the others.

    Args:
        forward_func, layer, device_ids: as in `igfast.LayerIntegratedGradients`, with one layer.
        multiply_by_inputs: whether to multiply gradients by the difference of the layer's values.
        lean, memory_budget, show_progress: as in `igfast.IntegratedGradients`.

    Raises:
        ArgumentError, ArgumentTypeError: as in `igfast.IntegratedGradients`; a list of layers.

    Source: as in `igfast.GradientShap`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> explainer = igfast.LayerGradientShap(model, model[0])
        >>> explainer.attribute(torch.ones(1, 3), torch.rand(10, 3), n_samples=20, target=0).shape
        torch.Size([1, 4])
    """

    stands_for = captum.attr.LayerGradientShap
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
        if isinstance(layer, list):
            raise ArgumentError("LayerGradientShap takes one layer; got a list")
        LayerGradientShap.stands_for.__init__(self, forward_func, layer, device_ids, multiply_by_inputs)
        self._igfast_options = Options(lean, memory_budget, show_progress)
        LayerGradientShap._igfast_explainer(self)  # checks the other arguments

    def _igfast_explainer(self) -> LayerIntegratedGradients:
        return LayerIntegratedGradients(
            self.forward_func, self.layer, self.device_ids, self.multiplies_by_inputs, **vars(self._igfast_options)
        )

    @log_usage(part_of_slo=True)
    def attribute(
        self,
        inputs: Any,
        baselines: Any,
        n_samples: int = 5,
        stdevs: float | tuple[float, ...] = 0.0,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
    ) -> Any:
        """Attributes `forward_func(inputs)[:, target]` to the layer's values.

        Args:
            inputs: as in `igfast.GradientShap.attribute`.
            baselines: as in `igfast.GradientShap.attribute`.
            n_samples: as in `igfast.GradientShap.attribute`.
            stdevs: as in `igfast.GradientShap.attribute`.
            target: as in `igfast.IntegratedGradients.attribute`.
            additional_forward_args: as in `igfast.IntegratedGradients.attribute`.
            return_convergence_delta: as in `igfast.GradientShap.attribute`.
            attribute_to_layer_input: as in `igfast.LayerIntegratedGradients.attribute`.

        Returns:
            As `igfast.LayerIntegratedGradients.attribute`, the mean over the samples.

        Raises:
            What `igfast.LayerIntegratedGradients.attribute` and Captum's `NoiseTunnel` raise.
        """
        arguments = dict(locals())
        if why := why_captums(self, LayerGradientShap):
            return sampled_by_captum(why, LayerGradientShap.stands_for, arguments)
        return through_tunnel(
            OfLayer(self._igfast_explainer(), (inputs, additional_forward_args)),
            inputs,
            baselines,
            n_samples,
            stdevs,
            target=target,
            additional_forward_args=additional_forward_args,
            return_convergence_delta=return_convergence_delta,
            attribute_to_layer_input=attribute_to_layer_input,
        )


class NeuronGradientShap(captum.attr.NeuronGradientShap, metaclass=StandsIn):
    """Attributes a neuron to a model's inputs, by gradients at random points.

    A drop-in for `captum.attr.NeuronGradientShap`, as `igfast.GradientShap` is for Captum's.

    Args:
        forward_func, layer, device_ids: as in `igfast.NeuronIntegratedGradients`.
        multiply_by_inputs: whether to multiply gradients by (inputs - baselines).
        lean, memory_budget, show_progress: as in `igfast.IntegratedGradients`.

    Raises:
        ArgumentError, ArgumentTypeError: as in `igfast.IntegratedGradients`.

    Source: as in `igfast.GradientShap`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
        >>> explainer = igfast.NeuronGradientShap(model, model[0])
        >>> explainer.attribute(torch.ones(1, 3), 2, torch.rand(10, 3), n_samples=20).shape
        torch.Size([1, 3])
    """

    stands_for = captum.attr.NeuronGradientShap
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
        NeuronGradientShap.stands_for.__init__(self, forward_func, layer, device_ids, multiply_by_inputs)
        self._igfast_options = Options(lean, memory_budget, show_progress)
        NeuronGradientShap._igfast_explainer(self)  # checks the other arguments

    def _igfast_explainer(self) -> NeuronIntegratedGradients:
        return NeuronIntegratedGradients(
            self.forward_func, self.layer, self.device_ids, self.multiplies_by_inputs, **vars(self._igfast_options)
        )

    @log_usage(part_of_slo=True)
    def attribute(
        self,
        inputs: Any,
        neuron_selector: Selector,
        baselines: Any,
        n_samples: int = 5,
        stdevs: float = 0.0,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
    ) -> Any:
        """Attributes a neuron to `inputs`.

        Args:
            inputs: as in `igfast.GradientShap.attribute`.
            neuron_selector: as in `igfast.NeuronIntegratedGradients.attribute`.
            baselines: as in `igfast.GradientShap.attribute`.
            n_samples: as in `igfast.GradientShap.attribute`.
            stdevs: as in `igfast.GradientShap.attribute`.
            additional_forward_args: as in `igfast.IntegratedGradients.attribute`.
            attribute_to_neuron_input: as in `igfast.NeuronIntegratedGradients.attribute`.

        Returns:
            The attributions, the mean over the samples.

        Raises:
            What `igfast.NeuronIntegratedGradients.attribute` and Captum's `NoiseTunnel` raise.
        """
        arguments = dict(locals())
        if why := why_captums(self, NeuronGradientShap):
            return sampled_by_captum(why, NeuronGradientShap.stands_for, arguments)
        source = (inputs, additional_forward_args)
        sampled = OfNeuron(self._igfast_explainer(), source, neuron_selector, attribute_to_neuron_input)
        options = {"additional_forward_args": additional_forward_args}
        return through_tunnel(sampled, inputs, baselines, n_samples, stdevs, **options)
