"""Layer Integrated Gradients with Captum's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import captum.attr
import torch
from captum.log import log_usage
from torch import Tensor, nn

from igfast.attr._forward import ForwardFunction, as_tuple
from igfast.attr._inputs import Inputs, describe, parse_internal_batch_size
from igfast.attr._integration import Execution, Lean, Run, convergence_delta, scale
from igfast.attr._layer_function import FromLayer
from igfast.attr._layers import LayerTap, Values
from igfast.attr._model_inputs import ModelInputs, parse_model_inputs
from igfast.attr._state import buffers_restored
from igfast.attr._targets import parse_target
from igfast.errors import ArgumentError, LayerError, warn
from igfast.memory import free_memory, is_out_of_memory
from igfast.planner import FIRST_CHUNK_BYTES
from igfast.quadrature import quadrature_rule
from igfast.replay import CudaGraph

_Result = TypeVar("_Result")
_GRAD_OPTIONS = frozenset({"allow_unused", "materialize_grads"})


class LayerIntegratedGradients(captum.attr.LayerIntegratedGradients):
    """Attributes a model's output to what a layer gives out or takes in.

    The path leads from the layer's values at the baselines to those at the inputs. It is the way to attribute token
    ids: name the embedding layer, and sum the attributions over its last dimension.

    A drop-in for `captum.attr.LayerIntegratedGradients`, with the same arguments and results. Only the layer's values
    at the input and the baseline are kept; the points between go through the model in chunks, as in
    `igfast.IntegratedGradients`, and nothing before the layer is recorded for the gradient.

    Instances hold no state, so threads may share one, and one model. Hooks are removed whatever happens. A layer that
    is called more than once in a forward pass is an error, because no single path leads through it: wrap its calls in
    modules of their own (`torch.nn.Identity`) and name those.

    Args:
        forward_func: the model or any function that calls the layer; returns a tensor, (batch, ...).
        layer: a module, or a list of modules of which none gets its values from another one alone.
        device_ids: the GPUs of an `nn.DataParallel` model, if `forward_func` is not that model itself.
        multiply_by_inputs: whether to multiply the integrated gradients by the difference of the layer's values.
        lean, memory_budget, cuda_graph: as in `igfast.IntegratedGradients`.
        show_progress: show a progress bar over path points.

    Raises:
        ArgumentError, ArgumentTypeError: `lean`, `memory_budget` or `cuda_graph` is not one of its values.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3, applied to the rest of the network.
    """

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
        cuda_graph: CudaGraph = False,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, multiply_by_inputs)
        self._execution = Execution(lean, memory_budget, show_progress, cuda_graph)

    @log_usage(part_of_slo=True)
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        return_report: bool = False,
    ) -> Any:
        """Attributes `forward_func(inputs)[:, target]` to the layer's values.

        Args:
            inputs: a tensor or a tuple of tensors, (batch, *) each, of any dtype: they go through the model as they
                are, token ids as integers.
            baselines: for each input a number, a tensor of its shape or one of shape (1, *), of its dtype (the ids of
                padding or mask tokens, say). None is zero.
            target: as in `igfast.IntegratedGradients.attribute`.
            additional_forward_args: further arguments of `forward_func`, one or a tuple. Tensors whose first dimension
                is the batch or 1 are repeated for each path point, everything else is passed as it is.
            n_steps: points of the quadrature rule.
            method: the rule, one of `igfast.METHODS`.
            internal_batch_size: at most this many path points go through the model at a time; None lets igfast choose.
            return_convergence_delta: also return how far the attributions are from completeness.
            attribute_to_layer_input: attribute to what the layer takes in (its positional arguments).
            grad_kwargs: {"materialize_grads": True} or {"allow_unused": True} gives tensors that the output does not
                depend on attribution 0, instead of an error.
            return_report: also return an `igfast.RunReport`.

        Returns:
            For one layer a tensor shaped as the layer's value, or a tuple if it has several; for a list of layers a
            list of those. With `return_convergence_delta` or `return_report`, a tuple of that, the delta, (batch,): the
            sum of all attributions of an example less F(inputs) - F(baselines), and the report, in this order.

        Raises:
            LayerError: a layer is not reached, is called several times, or has values that no path leads through.
            InputTypeError, BaselineError, TargetError, TargetTypeError, ArgumentError, ArgumentTypeError,
            OutputError, OutputTypeError, IgfastMemoryError: as in `igfast.IntegratedGradients.attribute`.

        Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 1 and 3; the delta is that of Proposition 1.
        """
        layers = self.layer if isinstance(self.layer, list) else [self.layer]
        device_ids = self.device_ids or getattr(self.forward_func, "device_ids", None)
        with torch.inference_mode(False), torch.no_grad(), buffers_restored(self.forward_func):
            given = parse_model_inputs(inputs, baselines)
            rule = quadrature_rule(method, n_steps)
            size = parse_internal_batch_size(internal_batch_size)
            forward = ForwardFunction(
                forward_func=self.forward_func,
                inputs=given.as_inputs(given.x),
                args=as_tuple(additional_forward_args),
                target=parse_target(target, given.batch),
                lean=self._execution.lean_for(self.forward_func, layers),
                unused_is_zero=_unused_is_zero(grad_kwargs),
            )
            with (
                self._execution.memory(forward.inputs.device) as memory,
                LayerTap(layers, attribute_to_layer_input, device_ids).attached() as tap,
            ):
                evaluator = _from_layer(forward, given, tap, size)
                run = Run(evaluator, self._execution, memory)
                integral = run.integrate(
                    rule,
                    size,
                    with_ends=False,
                    kind=(*map(id, layers), attribute_to_layer_input),  # not the layers: one may be the model itself
                )
                attributions, totals = scale(evaluator.inputs, integral, self.multiplies_by_inputs)
                delta = None
                if return_convergence_delta:
                    n_rows = max(integral.chunks)
                    ends = (_values(forward, xs, n_rows) for xs in (given.x, given.baselines))
                    delta = convergence_delta(attributions, totals, next(ends), next(ends))
            result = _per_layer(attributions, evaluator, isinstance(self.layer, list))
            return run.results(result, delta, return_report)


def _unused_is_zero(grad_kwargs: dict[str, Any] | None) -> bool:
    unknown = set(grad_kwargs or {}) - _GRAD_OPTIONS
    if unknown:
        raise ArgumentError(f"grad_kwargs may have {sorted(_GRAD_OPTIONS)}; got {sorted(unknown)}")
    return any((grad_kwargs or {}).values())


def _from_layer(forward: ForwardFunction, given: ModelInputs, tap: LayerTap, size: int | None) -> FromLayer:
    """The forward function from the layers on, its inputs the layers' values at the inputs and the baselines."""
    if given.batch == 0:
        raise ArgumentError("inputs must hold at least one example, or the layer's values have no shape; got none")
    at_input, at_baseline = (_layer_values(forward, xs, tap, size) for xs in (given.x, given.baselines))
    per_layer = tuple(len(values) for values in at_input)
    x, baseline = (tuple(v for values in side for v in values) for side in (at_input, at_baseline))
    group = tuple(_group(v, b, given.batch, tap.what) for v, b in zip(x, baseline, strict=True))
    x, baseline = (
        tuple(v.unflatten(0, (given.batch, k)) if k > 1 else v for v, k in zip(side, group, strict=True))
        for side in (x, baseline)
    )
    evaluator = FromLayer(
        forward_func=forward.forward_func,
        inputs=Inputs(x, baseline, True, (), given.batch, False, f"the layer's {tap.what}"),
        args=(*given.x, *forward.args),
        target=forward.target,
        lean=forward.lean,
        unused_is_zero=forward.unused_is_zero,
        tap=tap,
        per_layer=per_layer,
        group=group,
    )
    if max(group) > 1:
        _check_grouping(evaluator)
    return evaluator


def _layer_values(forward: ForwardFunction, xs: Values, tap: LayerTap, size: int | None) -> list[Values]:
    """What each layer takes in or gives out for all examples, a chunk of them at a time."""

    def read(example: Tensor) -> list[Values]:
        """The values for some examples."""
        return tap.read(lambda: _call(forward, xs, example), stop=True)[0]

    chunks = _in_chunks(forward, size, read)
    if len(chunks) == 1:
        return chunks[0]
    return [tuple(torch.cat(column) for column in zip(*layer, strict=True)) for layer in zip(*chunks, strict=True)]


def _values(forward: ForwardFunction, xs: Values, size: int) -> Tensor:
    """The target's values of all examples, (batch,), a chunk of them at a time."""

    def values(example: Tensor) -> Tensor:
        """Those of some examples."""
        return forward.target.select(_call(forward, xs, example), example)

    return torch.cat(_in_chunks(forward, max(1, size), values))


def _call(forward: ForwardFunction, xs: Values, example: Tensor) -> Any:
    repeated = (forward._repeat(arg, example) for arg in (*xs, *forward.args))
    return forward.forward_func(*repeated)


def _in_chunks(forward: ForwardFunction, size: int | None, evaluate: Callable[[Tensor], _Result]) -> list[_Result]:
    """Evaluates examples in chunks of `size`, or of about `FIRST_CHUNK_BYTES` of input; halved if they do not fit."""
    results: list[_Result] = []
    start, batch, device = 0, forward.inputs.batch, forward.inputs.device
    size = min(batch, size or max(1, FIRST_CHUNK_BYTES // max(1, forward.inputs.row_bytes)))
    while start < batch:
        fits = True
        try:
            results.append(evaluate(torch.arange(start, min(start + size, batch), device=device)))
        except Exception as error:  # a model or a library may raise anything when memory runs out
            if size == 1 or not is_out_of_memory(error):
                raise
            fits = False
        if fits:
            start += size
        else:  # out of the handler, whose traceback holds what the failed chunk held
            size //= 2
            free_memory(device)
            warn(f"out of memory, so the layer's values are read {size} examples at a time")
    return results


def _group(value: Tensor, baseline: Tensor, batch: int, what: str) -> int:
    """How many entries of a layer's value belong to one example."""
    if value.shape != baseline.shape:
        raise LayerError(
            f"the layer's {what} is {describe(value)} for the inputs and {describe(baseline)} for the baselines; a "
            "path needs one shape"
        )
    if value.shape[0] == 0 or value.shape[0] % batch:
        raise LayerError(
            f"the layer's {what} must have the examples as its first dimension, {batch} of them or a multiple; got "
            f"{describe(value)}"
        )
    return value.shape[0] // batch


def _check_grouping(evaluator: FromLayer) -> None:
    """Raises LayerError unless a layer with several entries per example has those of one example side by side."""
    example = torch.zeros(2, dtype=torch.int64, device=evaluator.inputs.device)
    ends = tuple(torch.stack([x[0], b[0]]) for x, b in zip(evaluator.inputs.x, evaluator.inputs.baselines, strict=True))
    together = evaluator.value(ends, example)
    apart = torch.cat([evaluator.value(tuple(e[i : i + 1] for e in ends), example[:1]) for i in range(2)])
    if not torch.allclose(together, apart, rtol=1e-3, atol=1e-3 * float(apart.abs().max())):
        raise LayerError(
            f"the layer's {evaluator.tap.what} has several entries per example, and they are not side by side in its "
            "first dimension. Attribute a layer whose first dimension is the examples"
        )


def _per_layer(attributions: Values, evaluator: FromLayer, as_list: bool) -> Any:
    """The attributions in Captum's form: a tensor or a tuple for a layer, a list of those for a list of layers."""
    tensors = iter(a if k == 1 else a.flatten(0, 1) for a, k in zip(attributions, evaluator.group, strict=True))
    layers = [tuple(next(tensors) for _ in range(n)) for n in evaluator.per_layer]
    formatted = [layer if len(layer) > 1 else layer[0] for layer in layers]
    return formatted if as_list else formatted[0]
