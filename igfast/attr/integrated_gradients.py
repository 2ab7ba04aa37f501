"""Integrated Gradients with Captum's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

import captum.attr
from captum.log import log_usage
from torch import Tensor

from igfast.attr.stands_in import StandsIn
from igfast.errors import ArgumentError, ArgumentTypeError, InputTypeError
from igfast.explanation.explain import Explains
from igfast.model.call_inputs import parsed_for
from igfast.model.forward import ForwardFunction, with_targets
from igfast.model.state import undisturbed
from igfast.request.inputs import Inputs, as_tuple, describe, parse_inputs, parse_internal_batch_size
from igfast.request.model_inputs import parse_model_inputs
from igfast.request.options import Lean, Options
from igfast.request.several_baselines import Baselines
from igfast.request.several_targets import parse_targets
from igfast.request.target import Target, parse_target
from igfast.run.attributions import (
    by_target,
    check_attributions,
    convergence_delta,
    scale,
    scaled_with_graph,
    takes_graph,
)
from igfast.run.captums import has_own_delta, left_to_captum, why_integral_captums
from igfast.run.integration import Run
from igfast.run.precision import DEFAULT_STEPS, MAX_STEPS, quadrature_of
from igfast.run.steps import Quadrature

TensorOrTuple = TypeVar("TensorOrTuple", Tensor, tuple[Tensor, ...])
AnyBaselines = Tensor | int | float | tuple[Tensor | int | float, ...] | Baselines | None
AnyTarget = int | tuple[int | slice, ...] | Tensor | list[int] | list[tuple[int, ...]] | None
_CAPTUMS = captum.attr.IntegratedGradients  # under this name, whatever patch_captum() does


class IntegratedGradients(captum.attr.IntegratedGradients, Explains, metaclass=StandsIn):
    """Attributes a model's output to its input features by integrating gradients from a baseline to the input.

    A drop-in for `captum.attr.IntegratedGradients`. It takes the same arguments, returns the same results, and works
    inside Captum's other tools. The path goes through the model in chunks that fit in memory. Nothing the size of all
    path points is held. Instances hold no state, so threads may share one. `forward_func` is read at each call.

    The first evaluation of a call is the caller's own: `forward_func(*inputs, *additional_forward_args)`, forward only.
    Later calls of the same kind on the model (shapes, arguments, training mode) skip that evaluation if arguments are
    tensors, numbers and strings. If the output has one entry for each example, steps are stacked and examples split as
    memory and speed ask for. Comparing a step alone with the same step in a chunk checks that examples are independent.
    On a GPU, a first call that may be small runs the model once more, to count what autograd keeps.

    Every path point is a whole step if the comparison fails (with one warning), or the output or an argument has
    another number of entries. A whole step is the caller's own call at another alpha, with arguments and target as
    passed. So graphs, bags of instances, sequence-first layers and batch normalisation in training mode work, as in
    Captum with `internal_batch_size` equal to the number of examples.

    Subclasses that override `_attribute`, and instances with a replaced `gradient_func`, are left to Captum's own code.

    A call does not touch modes, gradients, hooks or the caller's tensors. Buffers that training mode updates (running
    statistics) are put back, of every module that `forward_func` is seen to use.
    Random draws in training mode advance the generator as in any forward pass.

    Args:
        forward_func: the model or any function of the inputs; returns a tensor, (batch, ...), one entry per example.
        multiply_by_inputs: whether to multiply the integrated gradients by `inputs - baselines`. If False, the result
            is the average gradient along the path, and completeness does not hold.
        lean: "auto" keeps in the forward pass only what the gradient of the input needs. A model that does not take
            that runs plainly, with a warning; True raises a LeanError instead. False always runs plainly, and "auto"
            does for calls on a GPU that are small enough to be faster so. Attributions are equal up to rounding.
        memory_budget: the most memory that a call may take over what is held when the call begins. Bytes, a size such
            as "2GiB", a fraction of the device's memory (a float up to 1.0), or None for all free memory, less a tenth.
            Chunks that do not fit are halved and repeated. Where one path point does not fit, repeated blocks of the
            model are recomputed in the backward pass. On CUDA, saved tensors then go to main memory. Each measure gives
            a warning. What attributions in other threads hold counts too; on CUDA, all that is allocated on the GPU.
        show_progress: show a progress bar over path points.

    Raises:
        ArgumentError, ArgumentTypeError: `lean` or `memory_budget` is none of these, or `forward_func` not callable.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3.
    """

    stands_for = captum.attr.IntegratedGradients
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
        if forward_func is not None and not callable(forward_func):
            raise ArgumentTypeError(f"forward_func must be callable; got {describe(forward_func)}")
        _CAPTUMS.__init__(self, forward_func, multiply_by_inputs)
        self._igfast_options = Options(lean, memory_budget, show_progress)

    @overload
    def attribute(
        self,
        inputs: TensorOrTuple,
        baselines: AnyBaselines = ...,
        target: AnyTarget = ...,
        additional_forward_args: object = ...,
        n_steps: int = ...,
        method: str = ...,
        internal_batch_size: int | None = ...,
        return_convergence_delta: Literal[False] = ...,
        *,
        tolerance: float | None = ...,
        max_steps: int = ...,
        correct_completeness: bool = ...,
        return_report: Literal[False] = ...,
    ) -> TensorOrTuple: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTuple,
        baselines: AnyBaselines = ...,
        target: AnyTarget = ...,
        additional_forward_args: object = ...,
        n_steps: int = ...,
        method: str = ...,
        internal_batch_size: int | None = ...,
        *,
        return_convergence_delta: Literal[True],
        tolerance: float | None = ...,
        max_steps: int = ...,
        correct_completeness: bool = ...,
        return_report: Literal[False] = ...,
    ) -> tuple[TensorOrTuple, Tensor]: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTuple,
        baselines: AnyBaselines = ...,
        target: AnyTarget = ...,
        additional_forward_args: object = ...,
        n_steps: int = ...,
        method: str = ...,
        internal_batch_size: int | None = ...,
        return_convergence_delta: bool = ...,
        *,
        tolerance: float | None = ...,
        max_steps: int = ...,
        correct_completeness: bool = ...,
        return_report: Literal[True],
    ) -> tuple[Any, ...]: ...

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
        *,
        tolerance: float | None = None,
        max_steps: int = MAX_STEPS,
        correct_completeness: bool = True,
        return_report: bool = False,
    ) -> Any:
        """Attributes `forward_func(inputs)[:, target]` to `inputs`.

        Args:
            inputs: a tensor or a tuple of tensors, (batch, *features) each: floating, complex or integer (path points
                are of the default dtype, as in Captum). Inputs with different numbers of rows move together.
            baselines: where the path starts; for each input a number, a tensor of its shape or one of shape
                (1, *features). None stands for zeros. Other dtypes become the input's; one that is wider, and the
                model's, stays. `igfast.Baselines` averages over several; attributions then have no graph.
            target: which part of the output is attributed. An int or a tuple of ints and slices is the same place for
                all examples. An integer tensor (batch,) or a list of ints or tuples has one per example, or per entry
                of the output. None is for one number per example.
            additional_forward_args: further arguments of `forward_func`, one or a tuple. Tensors whose first dimension
                is the batch or 1 are repeated for stacked path points. A tensor with another first dimension makes
                every path point a whole step. 0-d tensors and other objects are passed as they are.
            n_steps: points of the quadrature rule, at least 1 (2 for the trapezoid rules).
            method: the rule, one of `igfast.METHODS`. The weights of `riemann_trapezoid` sum to
                (n_steps - 1) / n_steps, as Captum's do; `trapezoid` is the correct rule.
            internal_batch_size: the most path points in the model at a time, also where that splits the examples.
                Dependent examples go in one whole step at a time, as in Captum. None lets igfast choose.
            return_convergence_delta: also return how far the attributions are from completeness.
            tolerance: instead of `n_steps`, the relative L2 error of each example's attributions to reach, above 0 and
                below 1. Each example gets as many path points as it needs, where its gradients change, both ends of the
                path included. Then a small correction makes its attributions sum to F(inputs) - F(baselines). One that
                is larger than both the bound of the error and a fifth of the tolerance is left out, and the example is
                `doubtful` in the report, which has the estimated errors.
            max_steps: with `tolerance`, the most path points of an example, at least 9.
            correct_completeness: with `tolerance`, whether that sum is corrected.
            return_report: also return an `igfast.RunReport`: what the call did and what it cost. With the methods
                `trapezoid` and `riemann_middle` and at least 3 steps, it has estimated errors too, which need the
                memory of the result; not with `igfast.Baselines`.

        Returns:
            The attributions, shaped as `inputs`, contiguous: float32 for half, bfloat16 and float32 inputs, float64 for
            float64, complex for complex ones. Attributions have a graph only as in Captum: through the factor
            (inputs - baselines), if those require a gradient and grad mode is on. `return_convergence_delta` and
            `return_report` make the result a tuple of attributions, delta and report (those asked for, in this order).
            The delta, (batch,), is the sum of each example's attributions less F(inputs) - F(baselines). Where the
            output has another number of entries than there are examples, the delta is that of the totals, (1,).

        Raises:
            InputError, InputTypeError, BaselineError, TargetError, TargetTypeError, ArgumentError, ArgumentTypeError:
                an argument is not allowed or does not fit the others; the message says which and what would be.
            OutputError, OutputTypeError: the output of `forward_func` cannot be attributed.
            LeanError: `lean` is True, and lean execution is not possible.
            IgfastMemoryError: not even one path point fits in the memory that is allowed.

        Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 1 and 3; the delta is that of Proposition 1.
        """
        arguments = dict(locals())
        if why := why_integral_captums(self, IntegratedGradients):
            return left_to_captum(why, _CAPTUMS, arguments)
        precision = (tolerance, max_steps, correct_completeness, self.multiplies_by_inputs, baselines)
        asked = (inputs, baselines, (parse_target(target),), additional_forward_args)
        quadrature = quadrature_of(method, n_steps, *precision, with_error=return_report)
        size = parse_internal_batch_size(internal_batch_size)
        own_delta = return_convergence_delta and has_own_delta(self, IntegratedGradients)
        with_delta = return_convergence_delta and not own_delta
        run, ((attributions, delta),) = self._igfast_attributed(*asked, quadrature, size, with_delta)
        if own_delta:
            given = as_tuple(attributions)
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
        *,
        tolerance: float | None = None,
        max_steps: int = MAX_STEPS,
        correct_completeness: bool = True,
        return_report: bool = False,
    ) -> Any:
        """Attributes several targets in one call: one forward pass for each path point, and one backward pass a target.

        Args:
            inputs: as in `attribute`.
            targets: a list of targets as `attribute` takes them, of one kind: classes, places, or tensors and lists
                with one for each example. Or "top5": the five classes with the largest outputs of each example.
            baselines: as in `attribute`.
            additional_forward_args: as in `attribute`.
            n_steps: as in `attribute`.
            method: as in `attribute`.
            internal_batch_size: as in `attribute`.
            return_convergence_delta: also return the delta of each target.
            tolerance: as in `attribute`; path points are added until every target of an example is within it.
            max_steps: as in `attribute`.
            correct_completeness: as in `attribute`.
            return_report: also return an `igfast.RunReport`; its `targets` are the targets, also those of "top5".

        Returns:
            A list with what `attribute` returns for each target: attributions, or a tuple of attributions and delta.
            With `return_report`, a tuple of that list and the report.

        Raises:
            TargetError, TargetTypeError: there are no targets, or targets of several kinds, or fewer classes.
            And whatever `attribute` raises.

        Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 1 and 3.

        Example:
            >>> explainer = igfast.IntegratedGradients(torch.nn.Linear(3, 5))
            >>> [tuple(part.shape) for part in explainer.attribute_targets(torch.ones(2, 3), [0, 3])]
            [(2, 3), (2, 3)]
        """
        if why := why_integral_captums(self, IntegratedGradients):
            raise ArgumentError(f"attribute_targets is not Captum's, and calls are left to Captum: {why}")
        precision = (tolerance, max_steps, correct_completeness, self.multiplies_by_inputs, baselines)
        asked = (inputs, baselines, parse_targets(targets), additional_forward_args)
        quadrature = quadrature_of(method, n_steps, *precision, with_error=return_report)
        size = parse_internal_batch_size(internal_batch_size)
        run, found = self._igfast_attributed(*asked, quadrature, size, return_convergence_delta)
        return run.results_of_targets(found, return_report)

    def _igfast_attributed_with(
        self, quadrature: Quadrature, inputs: Any, baselines: Any, target: Any, args: Any, with_delta: bool, source: Any
    ) -> tuple[Any, Tensor | None]:
        """Returns attributions and delta of a call that integrates in a way of its own.

        `source` has the inputs and further arguments of the caller's own call, where the inputs are noisy copies.
        """
        asked = (inputs, baselines, (parse_target(target),), args, quadrature, None, with_delta)
        return self._igfast_attributed(*asked, source)[1][0]

    def _igfast_attributed(
        self,
        inputs: Any,
        baselines: Any,
        targets: tuple[Target, ...] | int,
        additional_forward_args: Any,
        quadrature: Quadrature,
        size: int | None,
        with_delta: bool,
        source: tuple[Any, Any] | None = None,
    ) -> tuple[Run, list[tuple[Any, Tensor | None]]]:
        """Returns the run, and for each target the attributions in the form of the inputs, and the delta if asked."""
        multiplies = self.multiplies_by_inputs and not quadrature.multiplies_itself
        with_graph = multiplies and takes_graph(inputs, baselines)
        with undisturbed(self.forward_func):
            parsed, several = parsed_for(self.forward_func, inputs, baselines)
            with self._igfast_options.memory(parsed.device) as memory:
                evaluator = with_targets(self._igfast_evaluator(parsed, additional_forward_args), targets)
                own_call = self._igfast_evaluator(parse_inputs(source[0], None), source[1]) if source else None
                run = Run(evaluator, self._igfast_options, memory, size, "inputs", several=several, own_call=own_call)
                sums = by_target(run.integrate(quadrature), len(evaluator.inputs.x))
                ends = run.ends() if with_delta else [None] * len(sums)
                attributions = [scale(run.evaluator, of_target, multiplies and not with_graph) for of_target in sums]
        if with_graph:
            attributions = [scaled_with_graph(one, inputs, baselines) for one in attributions]
        deltas = [
            None if at_ends is None else convergence_delta(tuple(a.detach() for a in one), *at_ends)
            for one, at_ends in zip(attributions, ends, strict=True)
        ]
        return run, [(evaluator.inputs.format(one), d) for one, d in zip(attributions, deltas, strict=True)]

    @log_usage()
    def compute_convergence_delta(
        self,
        attributions: Any,
        start_point: Any,
        end_point: Any,
        target: Any = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        """Returns how far attributions are from completeness, as the delta of `attribute`.

        Args:
            attributions: a tensor or a tuple of tensors, shaped as `end_point`.
            start_point: the baselines, as `attribute` takes them.
            end_point: the inputs.
            target: as in `attribute`.
            additional_forward_args: as in `attribute`.

        Returns:
            Each example's sum of attributions less F(end_point) - F(start_point), (batch,), of the attributions' dtype.
            Where the output has another number of entries than there are examples, the difference of the totals, (1,).

        Raises:
            ArgumentError, ArgumentTypeError: the attributions are not those of these inputs.
            InputError, InputTypeError, BaselineError, TargetError, TargetTypeError, OutputError, OutputTypeError: as in
                `attribute`.

        Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, Proposition 1.
        """
        if IntegratedGradients not in type(self).__mro__:
            points = (start_point, end_point, target, additional_forward_args)
            return _CAPTUMS.compute_convergence_delta(self, attributions, *points)  # type: ignore[no-any-return]
        given, xs = as_tuple(attributions), as_tuple(end_point)
        try:
            ends = self._igfast_ends(end_point, start_point, target, additional_forward_args)
        except InputTypeError:
            if not any(isinstance(x, Tensor) and not x.is_floating_point() for x in xs):
                raise  # else attributions of embeddings, at token ids that the model takes as they are
            with undisturbed(self.forward_func):
                ids = parse_model_inputs(end_point, start_point)
                evaluator = with_targets(self._igfast_evaluator(ids, additional_forward_args), (parse_target(target),))
                ends = self._igfast_ends_of(evaluator)
        check_attributions(given, xs)
        return convergence_delta(tuple(a.detach() for a in given), *ends)

    def _igfast_ends(
        self, inputs: Any, baselines: Any, target: Any, additional_forward_args: Any, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns F(inputs) and F(baselines), one number for each entry of the output."""
        targets = (parse_target(target),)
        with undisturbed(self.forward_func):
            parsed, several = parsed_for(self.forward_func, inputs, baselines)
            return self._igfast_ends_of(
                with_targets(self._igfast_evaluator(parsed, additional_forward_args), targets), several
            )

    def _igfast_ends_of(self, evaluator: ForwardFunction, several: Baselines | None = None) -> tuple[Tensor, Tensor]:
        with self._igfast_options.memory(evaluator.inputs.device) as memory:
            return Run(evaluator, self._igfast_options, memory, None, "inputs", several=several).ends()[0]

    def _igfast_evaluator(self, inputs: Inputs, args: Any) -> ForwardFunction:
        return ForwardFunction(forward_func=self.forward_func, inputs=inputs, args=as_tuple(args))
