"""Layer Integrated Gradients with Captum's interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import captum.attr
import torch
from captum.log import log_usage
from torch import Tensor, nn

from igfast.errors import ArgumentError, ArgumentTypeError, LayerError
from igfast.explanation.explain import Explains
from igfast.memory.recovery import is_out_of_memory
from igfast.memory.scope import MemoryUse
from igfast.model.forward import ForwardFunction, as_tuple, copied
from igfast.model.independence import distance
from igfast.model.partial import FromLayer
from igfast.model.state import buffers_restored
from igfast.model.tap import LayerTap, Values
from igfast.request.inputs import Inputs, describe, parse_internal_batch_size
from igfast.request.model_inputs import AtLayer, ModelInputs, parse_model_inputs
from igfast.request.options import Lean, Options
from igfast.request.target import parse_target
from igfast.run.attributions import convergence_delta, scale
from igfast.run.captums import left_to_captum
from igfast.run.engine import Loop
from igfast.run.integration import Run
from igfast.run.plan import ChunkPlan
from igfast.run.precision import DEFAULT_STEPS, MAX_STEPS, quadrature_of

_SAME = 5e-2  # of the largest output: rounding is less on any device, another grouping is more
_GRAD_OPTIONS = frozenset({"allow_unused", "materialize_grads"})
_OPTIONS_OF_CAPTUM = frozenset({"create_graph", "retain_graph"})
_CAPTUMS = captum.attr.LayerIntegratedGradients  # under this name, whatever patch_captum() does


class LayerIntegratedGradients(captum.attr.LayerIntegratedGradients, Explains):
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
        if not callable(forward_func):
            raise ArgumentTypeError(f"forward_func must be callable; got {describe(forward_func)}")
        super().__init__(forward_func, layer, device_ids, multiply_by_inputs)
        self._options = Options(lean, memory_budget, show_progress)

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
                of padding or mask tokens, say. None is zero. An `igfast.baselines.AtLayer` has the layer's own value.
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
        if _OPTIONS_OF_CAPTUM & {name for name, value in (grad_kwargs or {}).items() if value}:
            if isinstance(baselines, AtLayer):
                raise ArgumentError("grad_kwargs asks for a graph, so baselines must be inputs; got an AtLayer")
            return left_to_captum("grad_kwargs asks for a graph", _CAPTUMS, arguments)
        asked = (inputs, baselines, target, additional_forward_args, attribute_to_layer_input, grad_kwargs)
        with torch.inference_mode(False), torch.no_grad(), buffers_restored(self.forward_func):
            quadrature = quadrature_of(
                method, n_steps, tolerance, max_steps, correct_completeness, self.multiplies_by_inputs
            )
            with self._run(*asked, parse_internal_batch_size(internal_batch_size)) as run:
                layers: FromLayer = run.evaluator  # type: ignore[assignment]
                sums = run.integrate(quadrature)
                ends = run.ends() if return_convergence_delta else None
                attributions = scale(run.evaluator, sums, self.multiplies_by_inputs)
            delta = None if ends is None else convergence_delta(attributions, *ends)
            shaped = tuple(a.view(x.shape) for a, x in zip(attributions, layers.values_of_layers(), strict=True))
            return run.results(_per_layer(shaped, layers, isinstance(self.layer, list)), delta, return_report)

    def _ends(
        self,
        inputs: Any,
        baselines: Any,
        target: Any,
        additional_forward_args: Any,
        attribute_to_layer_input: bool,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Returns F(inputs) and F(baselines), one number for each entry of the output."""
        asked = (inputs, baselines, target, additional_forward_args, attribute_to_layer_input, None)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            buffers_restored(self.forward_func),
            self._run(*asked, None) as run,
        ):
            return run.ends()

    @contextmanager
    def _run(
        self,
        inputs: Any,
        baselines: Any,
        target: Any,
        args: Any,
        at_input: bool,
        grad_kwargs: dict[str, Any] | None,
        size: int | None,
    ) -> Iterator[Run]:
        """Gives the run of a call, whose layers are hooked during the block."""
        at_layer = baselines if isinstance(baselines, AtLayer) else None
        given = parse_model_inputs(inputs, None if at_layer else baselines)
        forward = self._forward(given, target, args, grad_kwargs)
        with self._options.memory(forward.inputs.device) as memory, self._tapped(at_input) as tap:
            evaluator = _from_layer(forward, given, at_layer, tap, memory)
            kind = (*map(id, self._layers), at_input)  # ids: facts must not keep a layer alive
            yield Run(evaluator, self._options, memory, size, kind, tuple(self._layers))

    def _forward(
        self, given: ModelInputs, target: Any, args: Any, grad_kwargs: dict[str, Any] | None
    ) -> ForwardFunction:
        """Returns the forward function with its checked inputs, arguments and target."""
        return ForwardFunction(
            forward_func=self.forward_func,
            inputs=given.as_inputs(),
            args=as_tuple(args),
            target=parse_target(target),
            unused_is_zero=_unused_is_zero(grad_kwargs),
        )

    @property
    def _layers(self) -> list[nn.Module]:
        return self.layer if isinstance(self.layer, list) else [self.layer]

    def _tapped(self, at_input: bool) -> AbstractContextManager[LayerTap]:
        """Returns a block in which the layers are hooked."""
        device_ids = self.device_ids or getattr(self.forward_func, "device_ids", None)
        return LayerTap(self._layers, at_input, device_ids).attached()


def _unused_is_zero(grad_kwargs: dict[str, Any] | None) -> bool:
    unknown = set(grad_kwargs or {}) - _GRAD_OPTIONS - _OPTIONS_OF_CAPTUM
    if unknown:
        allowed = sorted(_GRAD_OPTIONS | _OPTIONS_OF_CAPTUM)
        raise ArgumentError(f"grad_kwargs may have {allowed}; got {sorted(unknown)}")
    return any((grad_kwargs or {}).values())


def _from_layer(
    forward: ForwardFunction, given: ModelInputs, at_layer: AtLayer | None, tap: LayerTap, memory: MemoryUse
) -> FromLayer:
    """Returns the forward function from the layers on.

    The inputs of that function are the layers' values at the inputs and the baselines.
    """
    if given.batch == 0:
        raise ArgumentError("inputs must hold at least one example, or the layer's values have no shape; got none")
    at_input, own = _read(forward, given.x, tap, memory)
    x = _flat(at_input)
    if at_layer is None:
        at_baseline, own_baseline = _read(forward, given.baselines, tap, memory)
        baseline = _flat(at_baseline)
    else:
        baseline, own_baseline = at_layer.for_values(x), None
    for value, other in zip(x, baseline, strict=True):
        if value.shape != other.shape or value.dim() == 0:
            raise LayerError(
                f"the layer's {tap.what} is {describe(value)} for the inputs and {describe(other)} for the baselines; "
                "a path needs one shape"
            )
    why_joint = forward.why_whole_steps() or _why_joint(x, given.batch, tap.what)
    group = tuple(1 if why_joint else v.shape[0] // given.batch for v in x)
    evaluator = FromLayer(
        forward_func=forward.forward_func,
        inputs=_layer_inputs(x, baseline, given.batch, group, f"the layer's {tap.what}"),
        args=(*given.x, *forward.args),
        target=forward.target,
        lean=forward.lean,
        unused_is_zero=forward.unused_is_zero,
        tap=tap,
        per_layer=tuple(len(values) for values in at_input),
        group=group,
        own=own,
        own_baseline=own_baseline,
    )
    if not why_joint and max(group) > 1 and not _are_side_by_side(evaluator):
        why_joint = f"the layer's {tap.what} has several entries per example, and they are not side by side"
        evaluator = replace(
            evaluator,
            inputs=_layer_inputs(x, baseline, given.batch, (1,) * len(x), f"the layer's {tap.what}"),
            group=(1,) * len(x),
        )
    return evaluator.in_whole_steps(why_joint) if why_joint else evaluator


def _flat(values: list[Values]) -> Values:
    return tuple(value for layer in values for value in layer)


def _layer_inputs(x: Values, baseline: Values, batch: int, group: tuple[int, ...], name: str) -> Inputs:
    x, baseline = (
        tuple(v.unflatten(0, (batch, k)) if k > 1 else v for v, k in zip(side, group, strict=True))
        for side in (x, baseline)
    )
    return Inputs(x, baseline, True, (), batch, "", name)


def _why_joint(values: Values, batch: int, what: str) -> str:
    for value in values:
        if value.shape[0] == 0 or value.shape[0] % batch:
            return f"the layer's {what} is {describe(value)}, not one entry for each of the {batch} examples"
    return ""


def _read(forward: ForwardFunction, xs: Values, tap: LayerTap, memory: MemoryUse) -> tuple[list[Values], Any]:
    """Returns each layer's values for all examples, and the output; in parts where memory does not hold all."""
    batch, examples = forward.inputs.batch, forward.all_examples()
    n_parts = 1 if forward.why_whole_steps() else batch  # the most parts
    row_bytes = sum(x.nbytes for x in xs) // batch

    def read(rows: slice) -> tuple[list[Values], Any]:
        if rows.stop - rows.start == n_parts:
            args = tuple(map(copied, (*xs, *forward.args)))
        else:
            args = tuple(forward._repeat(arg, examples[rows]) for arg in (*xs, *forward.args))
        return tap.read(lambda: forward._checked(forward.forward_func, *args))

    loop = Loop(ChunkPlan(1, n_parts, n_parts, row_bytes), memory, forward.save_memory, "one example")
    parts = [part for _, part in loop.over(n_parts, read)]
    if len(parts) == 1:
        return parts[0]
    values = [
        tuple(torch.cat(column) for column in zip(*layer, strict=True))
        for layer in zip(*(v for v, _ in parts), strict=True)
    ]
    return values, torch.cat([output for _, output in parts])


def _are_side_by_side(evaluator: FromLayer) -> bool:
    """Returns whether a layer with several entries per example has those of one example next to each other."""
    example = torch.zeros(2, dtype=torch.int64, device=evaluator.inputs.device)
    ends = tuple(torch.stack([x[0], b[0]]) for x, b in zip(evaluator.inputs.x, evaluator.inputs.baselines, strict=True))
    try:
        together = evaluator.output(ends, example)
        apart = [evaluator.output(tuple(e[i : i + 1] for e in ends), example[:1]) for i in range(2)]
    except Exception as error:  # a model may raise anything for rows that it was not given
        if is_out_of_memory(error):
            raise
        return False
    outputs = torch.cat([evaluator.comparable(one) for one in apart])
    return distance(evaluator.comparable(together), outputs) <= _SAME


def _per_layer(attributions: Values, evaluator: FromLayer, as_list: bool) -> Any:
    """Returns attributions in Captum's form: a tensor or a tuple for a layer, a list of those for a list of layers."""
    tensors = iter(attributions)
    layers = [tuple(next(tensors) for _ in range(n)) for n in evaluator.per_layer]
    formatted = [layer if len(layer) > 1 else layer[0] for layer in layers]
    return formatted if as_list else formatted[0]
