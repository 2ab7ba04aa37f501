"""What the attribution classes share between parsing and formatting: the plan, the loop, scaling and the delta."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from igfast import ops
from igfast.attr._forward import CustomGradient, ForwardFunction
from igfast.attr._inputs import Inputs, warn_if_not_finite
from igfast.attr._state import Remembered, module_of
from igfast.engine import Integral, integrate
from igfast.errors import ArgumentError, GraphError, warn
from igfast.lean import LeanExecution, compiled, why_not
from igfast.memory import MemoryUse, memory_lent, parse_memory_budget
from igfast.ops._load import kernels_for
from igfast.path import Path, may_be_channels_last
from igfast.planner import ChunkPlan
from igfast.quadrature import Rule
from igfast.replay import CudaGraph, Replay, recorder_for
from igfast.report import LeanReport, RunReport

Lean = Literal["auto", True, False]

_remembered: Remembered[ChunkPlan] = Remembered()
_not_lean: Remembered[str] = Remembered()  # why lean execution does not fit a model


@dataclass(frozen=True)
class Execution:
    """How a model is run: igfast's own options of the constructors.

    Attributes:
        lean: "auto", True or False.
        memory_budget: as the caller passed it.
        show_progress: show a progress bar over path points.
        cuda_graph: "auto", True or False.

    Raises:
        ArgumentError, ArgumentTypeError: an option is not one of its values.
    """

    lean: Lean = "auto"
    memory_budget: int | float | str | None = None
    show_progress: bool = False
    cuda_graph: CudaGraph = False

    def __post_init__(self) -> None:
        for name in ("lean", "cuda_graph"):
            if getattr(self, name) not in ("auto", True, False):
                raise ArgumentError(f'{name} must be "auto", True or False; got {getattr(self, name)!r}')
        parse_memory_budget(self.memory_budget)

    def memory(self, device: torch.device) -> AbstractContextManager[MemoryUse]:
        """Lends the memory that the budget allows."""
        return memory_lent(device, parse_memory_budget(self.memory_budget))

    def lean_for(self, forward_func: Callable[..., Any], hooked: Sequence[nn.Module] = ()) -> LeanExecution:
        """Lean execution of one call, off where it is not wanted or known not to fit.

        Args:
            forward_func: what is attributed.
            hooked: layers whose values are replaced or read by hooks.

        Raises:
            LeanError: it is required, and not possible.
        """
        module = module_of(forward_func)
        if self.lean is False:
            return LeanExecution("lean=False", False, module, hooked)
        known = _not_lean.get(forward_func, None) if self.lean == "auto" else None
        return LeanExecution(known or why_not(forward_func, module), self.lean is True, module, hooked)

    def replay_for(self, evaluator: ForwardFunction) -> Replay:
        """The CUDA graphs of one call; none where they are not wanted or cannot be.

        Raises:
            ArgumentError: they are required, and the inputs are not on a GPU.
            GraphError: they are required, and not possible.
        """
        device, is_required = evaluator.inputs.device, self.cuda_graph is True
        recorder = None if self.cuda_graph is False else recorder_for(device)
        if recorder is None:
            if is_required:
                raise ArgumentError(f"cuda_graph=True needs inputs on a CUDA device; got inputs on {device}")
            return Replay()
        why_not = _why_no_graph(evaluator, device)
        if why_not and is_required:
            raise GraphError(f"cuda_graph=True, but {why_not}")
        return Replay(recorder, is_required, why_not)


@dataclass
class Run:
    """One call's path points through the model: what integrates them and what there is to say about it afterwards.

    Args:
        evaluator: what is attributed; its `inputs` are the paths' ends.
        execution: how the model is run.
        memory: what may be taken.
    """

    evaluator: ForwardFunction
    execution: Execution
    memory: MemoryUse
    _replay: Replay = field(default_factory=Replay, init=False)
    _began: float = field(default_factory=time.perf_counter, init=False)
    _plan: ChunkPlan | None = field(default=None, init=False)
    _integral: Integral | None = field(default=None, init=False)

    def integrate(
        self,
        rule: Rule,
        internal_batch_size: int | None,
        *,
        with_ends: bool,
        kind: Hashable = None,
        may_change_layout: bool = True,
    ) -> Integral:
        """Runs the rows of the evaluator's inputs through it.

        Args:
            rule: nodes and weights.
            internal_batch_size: the rows that the caller allows in one chunk, or None.
            with_ends: also find the values at both ends.
            kind: what else than the shapes of the inputs the choice of chunks depends on.
            may_change_layout: whether channels-last path points may be tried.

        Returns:
            The integral; a warning was given if gradients were not finite and the inputs were.
        """
        evaluator = self.evaluator
        input_not_finite = warn_if_not_finite(evaluator.inputs)
        rows_allowed = evaluator.inputs.rows_allowed(internal_batch_size)
        integral = self._integrate(rule, rows_allowed, with_ends, kind, may_change_layout)
        if evaluator.lean.failed_because:
            _not_lean.put(evaluator.forward_func, None, evaluator.lean.failed_because)
        if integral.not_finite is not None and not input_not_finite:
            _warn_gradient(integral, rule)
        self._integral = integral
        return integral

    def _integrate(
        self, rule: Rule, rows_allowed: int | None, with_ends: bool, kind: Hashable, may_change_layout: bool
    ) -> Integral:
        inputs = self.evaluator.inputs
        paths = [Path(x, baseline) for x, baseline in zip(inputs.x, inputs.baselines, strict=True)]
        if inputs.batch == 0:
            nothing = inputs.x[0].new_zeros(0, dtype=torch.float64)
            return Integral(tuple(path.zeros() for path in paths), nothing, nothing, None)
        n_rows = inputs.batch * len(rule.nodes)
        layouts = tuple(path.memory_format for path in paths)
        module = module_of(self.evaluator.forward_func)
        may_change_layout = (
            may_change_layout
            and any(may_be_channels_last(p.x) and p.memory_format is torch.contiguous_format for p in paths)
            and not compiled(self.evaluator.forward_func, module)  # for one layout
            and not _takes_patches(module)  # which gain nothing, and comparing layouts costs two forward passes
        )
        shapes = tuple((x.shape, x.dtype, x.device) for x in inputs.x)
        kind = (kind, shapes, layouts, may_change_layout, n_rows, rows_allowed, self.execution.memory_budget)
        known = _remembered.get(self.evaluator.forward_func, kind)
        is_on_cpu = inputs.device.type == "cpu"  # where convolutions are as fast or faster on channels-last images
        if known is not None:
            plan = known.resumed(n_rows)
        elif rows_allowed is None:
            weight_bytes = _weight_bytes(module, self.memory.device) if self.evaluator.runs_whole_model else 0
            plan = ChunkPlan.growing(
                inputs.batch,
                n_rows,
                inputs.row_bytes,
                may_change_layout,
                prefers_channels_last=is_on_cpu,
                weight_bytes=weight_bytes,
                is_parallel=not is_on_cpu,
            )
        else:
            plan = ChunkPlan.fixed(inputs.batch, n_rows, inputs.row_bytes, rows_allowed, may_change_layout, is_on_cpu)
        self._plan = plan
        self._replay = self.execution.replay_for(self.evaluator)
        with (
            closing(self._replay),
            tqdm(total=n_rows, desc="igfast", unit="row") if self.execution.show_progress else nullcontext() as bar,
        ):
            integral = integrate(
                paths,
                rule,
                self.evaluator,
                plan,
                self.memory,
                with_ends=with_ends,
                on_rows=None if bar is None else bar.update,
                replay=self._replay,
            )
        _remembered.put(self.evaluator.forward_func, kind, plan)
        return integral

    def results(self, attributions: Any, delta: Tensor | None, with_report: bool) -> Any:
        """What `attribute` returns: the attributions alone, or a tuple with what else was asked for."""
        others = ([] if delta is None else [delta]) + ([self.report()] if with_report else [])
        return (attributions, *others) if others else attributions

    def report(self) -> RunReport:
        """What the call did, once it has."""
        lean, integral = self.evaluator.lean, self._integral
        if integral is None:
            raise RuntimeError("igfast: nothing was integrated")  # not reachable from the public API
        device = self.evaluator.inputs.device
        return RunReport(
            n_rows=sum(rows * count for rows, count in integral.chunks.items()),
            n_evaluations=integral.n_evaluations,
            chunks=dict(integral.chunks),
            channels_last=self._plan is not None and self._plan.channels_last,
            lean=LeanReport(lean.off_because, dict(lean.swapped), dict(lean.plain)),
            peak_bytes=self.memory.peak(),
            budget_bytes=self.memory.allowed,
            seconds=time.perf_counter() - self._began,
            device=str(device),
            kernels=_kernels_on(device),
            notes=integral.notes,
            cuda_graph=str(self._replay),
        )


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


def _kernels_on(device: torch.device) -> str:
    """What igfast's operators run on: an instruction set, "cuda", or "none" for plain PyTorch."""
    if not kernels_for(device):
        return "none"
    return str(ops.build_info()["isa"]) if device.type == "cpu" else device.type


def _weight_bytes(module: nn.Module | None, device: torch.device) -> int:
    """Bytes of the weights that a chunk reads whole, on the device whose memory is measured."""
    parts = module.modules() if module is not None else ()
    layers = [part for part in parts if not _is_table(part)]
    weights = {weight for layer in layers for weight in layer.parameters(recurse=False)}  # some are shared
    read = (weight for weight in weights if not nn.parameter.is_lazy(weight) and weight.device == device)
    return sum(weight.numel() * weight.element_size() for weight in read)


def _why_no_graph(evaluator: ForwardFunction, device: torch.device) -> str:
    """What in a forward function a CUDA graph would leave out, as a sentence; empty if nothing that can be seen."""
    module = module_of(evaluator.forward_func)
    if isinstance(evaluator, CustomGradient):
        return "gradient_func was replaced"
    if nn.modules.module._has_any_global_hook():
        return "there are hooks on all modules, which a replay does not call"
    for part in module.modules() if module is not None else ():
        of_part = part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks
        if any(not _is_ours(hook) for hooks in of_part for hook in hooks.values()):
            return f"{type(part).__name__} has hooks, which a replay does not call"
        tensors = *part.parameters(recurse=False), *part.buffers(recurse=False)
        if isinstance(part, nn.DataParallel) or any(tensor.device != device for tensor in tensors):
            return f"{type(part).__name__} is on another device than the inputs, or on several"
    return compiled(evaluator.forward_func, module)


def _is_ours(hook: Callable[..., Any]) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("igfast.")


def _is_table(module: nn.Module) -> bool:
    """Whether a module reads some of its weights only; a scripted one knows the name of what it was made from."""
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name in ("Embedding", "EmbeddingBag")
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def _takes_patches(module: nn.Module | None) -> bool:
    """Whether all convolutions of a model cut their input into patches, as in vision transformers."""
    parts = module.modules() if module is not None else ()
    convolutions = [part for part in parts if isinstance(part, nn.modules.conv._ConvNd)]
    return bool(convolutions) and all(map(_cuts_patches, convolutions))


def _cuts_patches(convolution: nn.modules.conv._ConvNd) -> bool:
    widths, strides = (v if isinstance(v, tuple) else (v,) for v in (convolution.kernel_size, convolution.stride))
    strides *= len(widths) // len(strides)  # one may stand for all
    are_apart = all(stride >= width > 1 for stride, width in zip(strides, widths, strict=False))
    return are_apart and not convolution.transposed


def _warn_gradient(integral: Integral, rule: Rule) -> None:
    where = integral.not_finite
    if where is not None:
        warn(
            f"the gradient of example {where.example} at step {where.step} of {len(rule.nodes)} (alpha "
            f"{rule.nodes[where.step]:.4g}) is NaN or infinite; {where.n_rows} path points have such gradients, and "
            "attributions that depend on them will be too"
        )
