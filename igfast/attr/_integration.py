"""What the attribution classes share between parsing and formatting: the plan, the loop, scaling and the delta."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from igfast import ops
from igfast.attr._forward import ForwardFunction
from igfast.attr._inputs import Inputs, warn_if_not_finite
from igfast.attr._state import Remembered, module_of
from igfast.engine import Integral, Path, integrate
from igfast.errors import ArgumentError, warn
from igfast.lean import LeanExecution, why_not
from igfast.memory import freed_blocks_kept
from igfast.planner import ChunkPlan
from igfast.quadrature import Rule

Lean = Literal["auto", True, False]

_remembered: Remembered[ChunkPlan] = Remembered()
_not_lean: Remembered[str] = Remembered()  # why lean execution does not fit a model


def check_lean(lean: object) -> None:
    """Raises ArgumentError unless `lean` is "auto", True or False."""
    if lean not in ("auto", True, False):
        raise ArgumentError(f'lean must be "auto", True or False; got {lean!r}')


def lean_execution(lean: Lean, forward_func: Callable[..., Any]) -> LeanExecution:
    """Lean execution of one call, off where it is not wanted or known not to fit.

    Raises:
        LeanError: it is required, and not possible.
    """
    if lean is False:
        return LeanExecution("lean=False")
    known = _not_lean.get(forward_func, None) if lean == "auto" else None
    return LeanExecution(known or why_not(forward_func, module_of(forward_func)), required=lean is True)


def integrate_paths(
    evaluator: ForwardFunction,
    rule: Rule,
    internal_batch_size: int | None,
    *,
    with_ends: bool,
    show_progress: bool,
    kind: Hashable = None,
    may_change_layout: bool = True,
) -> Integral:
    """Runs the rows of an evaluator's inputs through it.

    Args:
        evaluator: what is attributed; its `inputs` are the paths' ends.
        rule: nodes and weights.
        internal_batch_size: the rows that the caller allows in one chunk, or None.
        with_ends: also find the values at both ends.
        show_progress: show a progress bar over rows.
        kind: what else than the shapes of the inputs the choice of chunks depends on.
        may_change_layout: whether channels-last path points may be tried.

    Returns:
        The integral; a warning was given if gradients were not finite and the inputs were.
    """
    inputs = evaluator.inputs
    input_not_finite = warn_if_not_finite(inputs)
    integral = _integrate(
        evaluator,
        rule,
        inputs.rows_allowed(internal_batch_size),
        with_ends,
        show_progress,
        kind,
        may_change_layout,
    )
    if evaluator.lean.failed_because:
        _not_lean.put(evaluator.forward_func, None, evaluator.lean.failed_because)
    if integral.not_finite is not None and not input_not_finite:
        _warn_gradient(integral, rule)
    return integral


def _integrate(
    evaluator: ForwardFunction,
    rule: Rule,
    rows_allowed: int | None,
    with_ends: bool,
    show_progress: bool,
    kind: Hashable,
    may_change_layout: bool,
) -> Integral:
    inputs = evaluator.inputs
    paths = [Path(x, baseline) for x, baseline in zip(inputs.x, inputs.baselines, strict=True)]
    if inputs.batch == 0:
        nothing = inputs.x[0].new_zeros(0, dtype=torch.float64)
        return Integral(tuple(path.zeros() for path in paths), nothing, nothing, None)
    n_rows = inputs.batch * len(rule.nodes)
    layouts = tuple(path.memory_format for path in paths)
    kind = (kind, tuple((x.shape, x.dtype, x.device) for x in inputs.x), layouts, n_rows, rows_allowed)
    known = _remembered.get(evaluator.forward_func, kind)
    may_change_layout = may_change_layout and any(
        path.has_channels and path.memory_format is torch.contiguous_format for path in paths
    )
    if known is not None:
        plan = known.resumed()
    elif rows_allowed is None:
        plan = ChunkPlan.growing(inputs.batch, n_rows, inputs.row_bytes, may_change_layout)
    else:
        plan = ChunkPlan.fixed(inputs.batch, rows_allowed, may_change_layout)
    keep = freed_blocks_kept() if paths[0].x.is_cpu else nullcontext()
    with keep, tqdm(total=n_rows, desc="igfast", unit="row", disable=not show_progress) as bar:
        integral = integrate(paths, rule, evaluator, plan, with_ends=with_ends, on_rows=bar.update)
    _remembered.put(evaluator.forward_func, kind, plan)
    return integral


def scale(inputs: Inputs, integral: Integral, multiply_by_inputs: bool) -> tuple[tuple[Tensor, ...], Tensor]:
    """The attributions, contiguous, and their sum over all features, (batch,), in double precision."""
    totals = []
    for acc, x, baseline in zip(integral.sums, inputs.x, inputs.baselines, strict=True):
        totals.append(ops.scale_(acc, x, baseline) if multiply_by_inputs else ops.reference.sum_examples(acc))
    return tuple(acc.contiguous() for acc in integral.sums), torch.stack(totals).sum(dim=0)


def convergence_delta(
    attributions: tuple[Tensor, ...], totals: Tensor, at_input: Tensor | None, at_baseline: Tensor | None
) -> Tensor:
    """The attributions' sums less F(inputs) - F(baselines), (batch,), of the attributions' dtype.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, Proposition 1.
    """
    dtype = attributions[0].dtype
    for attribution in attributions[1:]:
        dtype = torch.promote_types(dtype, attribution.dtype)
    if at_input is None or at_baseline is None:
        raise RuntimeError("igfast: the ends of the path were not evaluated")  # not reachable from the public API
    ends = (end.to(totals.device, torch.float64) for end in (at_input, at_baseline))
    return (totals - (next(ends) - next(ends))).to(dtype)


def _warn_gradient(integral: Integral, rule: Rule) -> None:
    where = integral.not_finite
    if where is not None:
        warn(
            f"the gradient of example {where.example} at step {where.step} of {len(rule.nodes)} (alpha "
            f"{rule.nodes[where.step]:.4g}) is NaN or infinite; {where.n_rows} path points have such gradients, and "
            "attributions that depend on them will be too"
        )
