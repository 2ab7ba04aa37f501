"""Integrated Gradients with Captum's interface."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, TypeVar, overload

import captum.attr
import torch
from captum._utils.gradient import compute_gradients
from captum.log import log_usage
from torch import Tensor
from tqdm.auto import tqdm

from igfast import ops
from igfast.attr._forward import CustomGradient, ForwardFunction, parse_additional_args
from igfast.attr._inputs import Inputs, parse_inputs, parse_internal_batch_size, warn_if_not_finite
from igfast.attr._state import Remembered, buffers_restored, module_of
from igfast.attr._targets import parse_target
from igfast.engine import Integral, Path, integrate
from igfast.errors import ArgumentError, InputError, warn
from igfast.lean import LeanExecution, why_not
from igfast.memory import freed_blocks_kept
from igfast.planner import Choice, ChunkPlan
from igfast.quadrature import Rule, quadrature_rule

_remembered: Remembered[Choice] = Remembered()
_not_lean: Remembered[str] = Remembered()  # why lean execution does not fit a model

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
        show_progress: show a progress bar over path points.

    Raises:
        ArgumentError: `lean` is none of these.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        multiply_by_inputs: bool = True,
        *,
        lean: Literal["auto", True, False] = "auto",
        show_progress: bool = False,
    ) -> None:
        super().__init__(forward_func, multiply_by_inputs)
        if lean not in ("auto", True, False):
            raise ArgumentError(f'lean must be "auto", True or False; got {lean!r}')
        self._lean = lean
        self._show_progress = show_progress

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
    ) -> tuple[TensorOrTuple, Tensor]: ...

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
                than there are examples. None lets igfast choose: about 1 MiB of input at first, more while the time
                per point improves. A model whose output for one example depends on the others in its batch (batch
                normalisation in training mode) sees chunks of whole steps where at least one step fits.
            return_convergence_delta: also return how far the attributions are from completeness.

        Returns:
            The attributions, shaped as `inputs`: float32 for half, bfloat16 and float32 inputs, float64 for float64,
            complex for complex ones, contiguous and without a graph. With `return_convergence_delta`, a tuple of them
            and the delta, (batch,): the sum of each example's attributions less F(inputs) - F(baselines).

        Raises:
            InputError, InputTypeError, BaselineError, TargetError, TargetTypeError, ArgumentError, ArgumentTypeError:
                an argument is not allowed or does not fit the others; the message says which and what would be.
            OutputError, OutputTypeError: the output of `forward_func` cannot be attributed.

        Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 1 and 3; the delta is that of Proposition 1.
        """
        # Out of inference mode, under which nothing can be differentiated, for callers that are in it.
        with torch.inference_mode(False), torch.no_grad(), buffers_restored(self.forward_func):
            parsed = parse_inputs(inputs, baselines)
            rule = quadrature_rule(method, n_steps)
            rows_allowed = parsed.rows_allowed(parse_internal_batch_size(internal_batch_size))
            evaluator = self._evaluator(parsed, target, additional_forward_args)
            if return_convergence_delta and parsed.joint:
                raise InputError(
                    "return_convergence_delta needs inputs with the same number of examples; got "
                    f"{[x.shape[1] for x in parsed.x]}"
                )
            input_not_finite = warn_if_not_finite(parsed)
            integral = self._integrate(parsed, rule, rows_allowed, evaluator, return_convergence_delta)
            if evaluator.lean.failed_because:
                _not_lean.put(self.forward_func, None, evaluator.lean.failed_because)
            if integral.not_finite is not None and not input_not_finite:
                _warn_gradient(integral, rule)
            attributions, totals = self._scale(parsed, integral)
            if not return_convergence_delta:
                return parsed.format(attributions)
            return parsed.format(attributions), _delta(attributions, totals, integral)

    def _evaluator(self, parsed: Inputs, target: Any, additional_forward_args: Any) -> ForwardFunction:
        """The forward function with everything that it is called with."""
        bound = {
            "forward_func": self.forward_func,
            "inputs": parsed,
            "args": parse_additional_args(additional_forward_args, parsed),
            "target": parse_target(target, None if parsed.joint else parsed.batch),
        }
        if self.gradient_func is compute_gradients:
            return ForwardFunction(**bound, lean=self._lean_execution())
        lean = LeanExecution("gradient_func was replaced", required=self._lean is True)
        return CustomGradient(**bound, lean=lean, gradient_func=self.gradient_func)

    def _lean_execution(self) -> LeanExecution:
        if self._lean is False:
            return LeanExecution("lean=False")
        known = _not_lean.get(self.forward_func, None) if self._lean == "auto" else None
        return LeanExecution(known or why_not(self.forward_func, module_of(self.forward_func)), self._lean is True)

    def _integrate(
        self, parsed: Inputs, rule: Rule, rows_allowed: int | None, evaluator: ForwardFunction, with_ends: bool
    ) -> Integral:
        paths = [Path(x, baseline) for x, baseline in zip(parsed.x, parsed.baselines, strict=True)]
        if parsed.batch == 0:
            nothing = parsed.x[0].new_zeros(0, dtype=torch.float64)
            return Integral(tuple(path.zeros() for path in paths), nothing, nothing, None)
        n_rows = parsed.batch * len(rule.nodes)
        layouts = tuple(path.memory_format for path in paths)
        kind = (tuple((x.shape, x.dtype, x.device) for x in parsed.x), layouts, n_rows, rows_allowed)
        known = _remembered.get(self.forward_func, kind)
        may_change_layout = not isinstance(evaluator, CustomGradient) and any(
            path.has_channels and path.memory_format is torch.contiguous_format for path in paths
        )
        if known is not None:
            plan = ChunkPlan.settled(parsed.batch, known)
        elif rows_allowed is None:
            plan = ChunkPlan.growing(parsed.batch, n_rows, parsed.row_bytes, may_change_layout)
        else:
            plan = ChunkPlan.fixed(parsed.batch, rows_allowed, may_change_layout)
        keep = freed_blocks_kept() if paths[0].x.is_cpu else nullcontext()
        with keep, tqdm(total=n_rows, desc="igfast", unit="row", disable=not self._show_progress) as bar:
            integral = integrate(paths, rule, evaluator, plan, with_ends=with_ends, on_rows=bar.update)
        if plan.choice is not None:
            _remembered.put(self.forward_func, kind, plan.choice)
        return integral

    def _scale(self, parsed: Inputs, integral: Integral) -> tuple[tuple[Tensor, ...], Tensor]:
        """The attributions, contiguous, and their sum over all features, (batch,), in double precision."""
        totals = []
        for acc, x, baseline in zip(integral.sums, parsed.x, parsed.baselines, strict=True):
            if self.multiplies_by_inputs:
                totals.append(ops.scale_(acc, x, baseline))
            else:
                totals.append(ops.reference.sum_examples(acc))
        return tuple(acc.contiguous() for acc in integral.sums), torch.stack(totals).sum(dim=0)


def _delta(attributions: tuple[Tensor, ...], totals: Tensor, integral: Integral) -> Tensor:
    """The convergence delta, (batch,), of the attributions' dtype."""
    dtype = attributions[0].dtype
    for attribution in attributions[1:]:
        dtype = torch.promote_types(dtype, attribution.dtype)
    if integral.at_input is None or integral.at_baseline is None:
        raise RuntimeError("igfast: the ends of the path were not evaluated")  # not reachable from the public API
    at_input, at_baseline = (end.to(totals.device, torch.float64) for end in (integral.at_input, integral.at_baseline))
    return (totals - (at_input - at_baseline)).to(dtype)


def _warn_gradient(integral: Integral, rule: Rule) -> None:
    where = integral.not_finite
    if where is not None:
        warn(
            f"the gradient of example {where.example} at step {where.step} of {len(rule.nodes)} (alpha "
            f"{rule.nodes[where.step]:.4g}) is NaN or infinite; {where.n_rows} path points have such gradients, and "
            "attributions that depend on them will be too"
        )
