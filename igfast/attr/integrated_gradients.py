"""Integrated Gradients with Captum's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

import captum.attr
import torch
from captum._utils.gradient import compute_gradients
from captum.log import log_usage
from torch import Tensor

from igfast.attr._forward import CustomGradient, ForwardFunction, parse_additional_args
from igfast.attr._inputs import Inputs, parse_inputs, parse_internal_batch_size
from igfast.attr._integration import Execution, Lean, Run, convergence_delta, scale
from igfast.attr._state import buffers_restored
from igfast.attr._targets import parse_target
from igfast.errors import InputError
from igfast.lean import LeanExecution
from igfast.quadrature import quadrature_rule
from igfast.replay import CudaGraph

TensorOrTuple = TypeVar("TensorOrTuple", Tensor, tuple[Tensor, ...])
Baselines = Tensor | int | float | tuple[Tensor | int | float, ...] | None
Target = int | tuple[int | slice, ...] | Tensor | list[int] | list[tuple[int, ...]] | None


class IntegratedGradients(captum.attr.IntegratedGradients):
    """Attributes a model's output to its input features by integrating gradients from a baseline to the input.

    A drop-in for `captum.attr.IntegratedGradients`: same arguments, results and places in Captum's other tools. It
    differs in what it costs. The path runs through the model in chunks that fit, whatever `n_steps` and the batch are,
    and nothing the size of all path points is held.

    Instances hold no state, so threads may share one. `forward_func` is read at each call. The chunk size and layout
    that turned out fastest are remembered for later calls on the same model with inputs of the same shapes.

    A call leaves the model as it was: modes, gradients, hooks and the caller's tensors are not touched, and buffers
    that a forward pass in training mode updates (running statistics) are put back, where `forward_func` is a module, a
    method of one, or a `functools.partial` of either. Random draws of a model in training mode advance the generator as
    in any other forward pass.

    Args:
        forward_func: the model or any function of the inputs; returns a tensor, (batch, ...), one entry per example.
        multiply_by_inputs: whether to multiply the integrated gradients by `inputs - baselines`. If False, the result
            is the average gradient along the path, and no completeness holds.
        lean: "auto" keeps in the forward pass only what the gradient of the input needs, and runs plainly, with a
            warning, what does not take that; True raises a LeanError then; False runs plainly always. The attributions
            are the same up to rounding.
        memory_budget: the most memory that a call may take over what is held when it begins: bytes, a size such as
            "2GiB", a fraction of the device's memory (a float up to 1.0), or None for all that is free, less a tenth.
            Chunks that do not fit are halved and repeated; where one path point does not fit, repeated blocks of the
            model are recomputed in the backward pass, and on CUDA saved tensors go to main memory, with a warning each.
            What attributions in other threads hold counts too. CUDA itself does not enforce it yet.
        show_progress: show a progress bar over path points.
        cuda_graph: on CUDA, whether chunks are recorded as a CUDA graph and replayed: "auto" where the GPU is seen to
            wait for Python, many chunks are left, and the model takes it; True raises a GraphError where it does not,
            and records without asking; False never does. What a model does in Python beside its operations happens as
            it was recorded, and not again: a model with hooks, or a compiled one, is not recorded. A call whose inputs
            and steps fit in one chunk has nothing to replay, and while there is a graph of another call there is none.

    Raises:
        ArgumentError, ArgumentTypeError: `lean`, `memory_budget` or `cuda_graph` is none of these.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        multiply_by_inputs: bool = True,
        *,
        lean: Lean = "auto",
        memory_budget: int | float | str | None = None,
        show_progress: bool = False,
        cuda_graph: CudaGraph = False,
    ) -> None:
        super().__init__(forward_func, multiply_by_inputs)
        self._execution = Execution(lean, memory_budget, show_progress, cuda_graph)

    @overload
    def attribute(
        self,
        inputs: TensorOrTuple,
        baselines: Baselines = ...,
        target: Target = ...,
        additional_forward_args: object = ...,
        n_steps: int = ...,
        method: str = ...,
        internal_batch_size: int | None = ...,
        return_convergence_delta: Literal[False] = ...,
        *,
        return_report: Literal[False] = ...,
    ) -> TensorOrTuple: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTuple,
        baselines: Baselines = ...,
        target: Target = ...,
        additional_forward_args: object = ...,
        n_steps: int = ...,
        method: str = ...,
        internal_batch_size: int | None = ...,
        *,
        return_convergence_delta: Literal[True],
        return_report: Literal[False] = ...,
    ) -> tuple[TensorOrTuple, Tensor]: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTuple,
        baselines: Baselines = ...,
        target: Target = ...,
        additional_forward_args: object = ...,
        n_steps: int = ...,
        method: str = ...,
        internal_batch_size: int | None = ...,
        return_convergence_delta: bool = ...,
        *,
        return_report: Literal[True],
    ) -> tuple[Any, ...]: ...

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
        *,
        return_report: bool = False,
    ) -> Any:
        """Attributes `forward_func(inputs)[:, target]` to `inputs`.

        Args:
            inputs: a tensor or a tuple of tensors, (batch, *features) each: floating, integer (path points are then
                of the default dtype, as in Captum) or complex. Inputs with different numbers of rows are taken as
                one joint example, whose rows all move along the path together.
            baselines: where the path starts; for each input a number, a tensor of its shape or one of shape
                (1, *features). None is zero. Other dtypes are converted to the input's.
            target: what of the output is attributed: an int or a tuple of ints (the same place for every example), an
                integer tensor (batch,), a list of ints or a list of tuples (one per example). None if the output is
                one number per example.
            additional_forward_args: further arguments of `forward_func`, one or a tuple. Tensors, whose first dimension
                is the batch or 1, are repeated for each path point; 0-d tensors and other objects are passed as is.
            n_steps: points of the quadrature rule, at least 1 (2 for the trapezoid rules).
            method: the rule, one of `igfast.METHODS`. `riemann_trapezoid` is Captum's, whose weights sum to
                (n_steps - 1) / n_steps; `trapezoid` is the correct one.
            internal_batch_size: at most this many path points go through the model at a time, also when that is fewer
                than there are examples. None lets igfast choose: about 2 MiB of input at first, more while the time
                per point improves. A model whose output for one example depends on the others in its batch (batch
                normalisation in training mode) sees chunks of whole steps where at least one step fits.
            return_convergence_delta: also return how far the attributions are from completeness.
            return_report: also return an `igfast.RunReport`: what the call did and what it cost.

        Returns:
            The attributions, shaped as `inputs`: float32 for half, bfloat16 and float32 inputs, float64 for float64,
            complex for complex ones, contiguous and without a graph. With `return_convergence_delta` or
            `return_report`, a tuple of them, the delta, (batch,): the sum of each example's attributions less
            F(inputs) - F(baselines), and the report, whichever were asked for, in this order.

        Raises:
            InputError, InputTypeError, BaselineError, TargetError, TargetTypeError, ArgumentError, ArgumentTypeError:
                an argument is not allowed or does not fit the others; the message says which and what would be.
            OutputError, OutputTypeError: the output of `forward_func` cannot be attributed.
            IgfastMemoryError: not even one path point fits in the memory that is allowed.

        Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 1 and 3; the delta is that of Proposition 1.
        """
        # Out of inference mode, under which nothing can be differentiated, for callers that are in it.
        with torch.inference_mode(False), torch.no_grad(), buffers_restored(self.forward_func):
            parsed = parse_inputs(inputs, baselines)
            rule = quadrature_rule(method, n_steps)
            size = parse_internal_batch_size(internal_batch_size)
            evaluator = self._evaluator(parsed, target, additional_forward_args)
            if return_convergence_delta and parsed.joint:
                raise InputError(
                    "return_convergence_delta needs inputs with the same number of examples; got "
                    f"{[x.shape[1] for x in parsed.x]}"
                )
            with self._execution.memory(parsed.device) as memory:
                run = Run(evaluator, self._execution, memory)
                integral = run.integrate(
                    rule,
                    size,
                    with_ends=return_convergence_delta,
                    may_change_layout=not isinstance(evaluator, CustomGradient),
                )
                attributions, totals = scale(parsed, integral, self.multiplies_by_inputs)
                delta = None
                if return_convergence_delta:
                    delta = convergence_delta(attributions, totals, integral.at_input, integral.at_baseline)
            return run.results(parsed.format(attributions), delta, return_report)

    def _evaluator(self, parsed: Inputs, target: Any, additional_forward_args: Any) -> ForwardFunction:
        """The forward function with everything that it is called with."""
        bound = {
            "forward_func": self.forward_func,
            "inputs": parsed,
            "args": parse_additional_args(additional_forward_args, parsed.batch, parsed.joint),
            "target": parse_target(target, None if parsed.joint else parsed.batch),
        }
        if self.gradient_func is compute_gradients:
            return ForwardFunction(**bound, lean=self._execution.lean_for(self.forward_func))
        lean = LeanExecution("gradient_func was replaced", required=self._execution.lean is True)
        return CustomGradient(**bound, lean=lean, gradient_func=self.gradient_func)
