"""Runs one call from checked arguments to summed gradients: facts about the model, plan, loop and report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from igfast import ops
from igfast.errors import IgfastError, warn
from igfast.interrupts import must_pass
from igfast.lean import Execution, why_not_lean
from igfast.memory.scope import MemoryUse
from igfast.model.channels_last import may_be_channels_last
from igfast.model.facts import Facts, discover, key_of, plain_bytes, remembered
from igfast.model.forward import ForwardFunction
from igfast.model.guard import Guard
from igfast.model.independence import RowsDependError
from igfast.model.modules import module_of, weight_bytes, weights_behind
from igfast.ops._load import kernels_for
from igfast.request.inputs import warn_if_not_finite
from igfast.request.options import Options
from igfast.request.several_baselines import Baselines
from igfast.rng import random_state
from igfast.run.engine import Gradients, Loop, NotFinite
from igfast.run.path import accumulator, straight_line
from igfast.run.plan import WATCHED, ChunkPlan, limits_of
from igfast.run.report import Convergence, LeanReport, RunReport
from igfast.run.steps import Quadrature
from igfast.run.values_at_ends import values_at, values_at_several_baselines, values_of

_PLAIN_IS_FASTER = {"cuda"}  # for small calls: a GPU waits for Python, and lean execution runs more of that
_SMALL_BYTES = 2**26


class _Done(NamedTuple):
    """What was done: chunks by their rows, the first gradient that was not finite, evaluations, and convergence."""

    chunks: Counter[int]
    not_finite: NotFinite | None
    n_evaluations: int
    convergence: Convergence | None


@dataclass
class Run:
    """One call's path points through the model, and the report of the call.

    Rows belong together where the output of one example depends on the others in its batch.

    Attributes:
        evaluator: the attributed function; its `inputs` are the paths' ends. In whole steps if rows belong together.
        options: how the model is run.
        memory: the memory that the call may take.
        internal_batch_size: the rows that the caller allows in one chunk, or None.
        kind: what the facts depend on besides the evaluator's inputs and arguments.
        hooked: layers whose values are replaced or read by hooks.
        several: several baselines of each example; None where each has one.
        own_call: the caller's own call, where the evaluator's examples are noisy copies of its examples. All copies of
            one example are side by side. None where the evaluator makes that call.
    """

    evaluator: ForwardFunction
    options: Options
    memory: MemoryUse
    internal_batch_size: int | None
    kind: Hashable = None
    hooked: tuple[nn.Module, ...] = ()
    several: Baselines | None = None
    own_call: ForwardFunction | None = None
    _own_output: Any = field(default=None, init=False)  # of the caller's own call, if this call made it
    _kept: dict[str, list[Tensor]] = field(default_factory=dict, init=False)  # each target's values at an end
    _facts_key: Hashable = field(default=None, init=False)
    _notes: list[str] = field(default_factory=list, init=False)
    _began: float = field(default_factory=time.perf_counter, init=False)
    _spread: tuple[float, ...] | None = field(default=None, init=False)
    _plan: ChunkPlan | None = field(default=None, init=False)
    _done: _Done | None = field(default=None, init=False)
    _ends: list[tuple[Tensor, Tensor]] | None = field(default=None, init=False)

    def integrate(self, quadrature: Quadrature) -> tuple[Tensor, ...]:
        """Returns the weighted sum of gradients along the path of each input, shaped as the input, target after target.

        Warns if gradients are not finite although the inputs are.
        """
        inputs = self.evaluator.inputs
        input_not_finite = warn_if_not_finite(inputs)
        facts = self._find_facts() if inputs.batch > 0 else None  # before the accumulators take memory
        results = self.evaluator.integrated.x * len(self.evaluator.targets)
        n_bytes = sum(x.numel() * ops.accumulator_dtype(x.dtype).itemsize for x in results)
        with self.memory.for_results(n_bytes):
            sums = tuple(accumulator(x.squeeze(0) if inputs.joint else x) for x in results)
        if facts is None:
            self._done = _Done(Counter(), None, 0, None)
            return sums
        self.evaluator.lean, facts = self._execution(facts, quadrature.n_steps)
        self._own_call.lean = self.evaluator.lean
        for _ in range(facts.n_savings):  # measures that earlier calls of this kind took
            if done := self.evaluator.save_memory():
                self._notes.append(f"{done}, as in an earlier call")
        try:
            facts = self._integrated_where_rows_agree(quadrature, sums, facts)
        finally:
            lean = self.evaluator.lean
            not_lean = lean.failed_because or facts.not_lean
            self._remember(replace(facts, not_lean=not_lean, recomputes=lean.recomputes))
        not_finite = self._done.not_finite if self._done else None
        if not_finite is not None and not input_not_finite:
            warn(
                f"the gradient of example {not_finite.example} at {not_finite.place(quadrature.n_steps)} is NaN or "
                f"infinite; {not_finite.n_rows} path points have such gradients, and attributions that depend on them "
                "will be too"
            )
        return sums

    def ends(self) -> list[tuple[Tensor, Tensor]]:
        """Returns F(inputs) and F(baselines) of each target, one number for each entry of the output, forward only."""
        if self._ends is not None:
            return self._ends
        if self.evaluator.inputs.batch == 0:
            nothing = torch.zeros(0, dtype=torch.float64, device=self.evaluator.inputs.device)
            self._ends = [(nothing, nothing)] * len(self.evaluator.targets)
            return self._ends
        if self._done is None:
            facts = self._find_facts()
            self._remember(facts)
            self._apply(facts)
        return self._compute_ends()

    def _compute_ends(self) -> list[tuple[Tensor, Tensor]]:
        at_inputs = self._at_inputs()
        if self.several is None:
            at_baselines = self._kept.get("baselines") or self._values_at(0.0, self.evaluator.baseline_output)
        else:
            inputs = self.evaluator.inputs
            rows = 1 if inputs.joint else max(1, self._plan.rows if self._plan else inputs.batch)
            at_baselines, self._spread = values_at_several_baselines(self.evaluator, self.several, rows, self._loop)
        self._ends = list(zip(at_inputs, at_baselines, strict=True))
        return self._ends

    def _keep_values(self) -> None:
        """Keeps the targets' values of outputs that are there anyway, and lets go of the outputs."""
        at_inputs, at_baselines = self.evaluator.take_outputs()
        made = {"inputs": self._own_output if at_inputs is None else at_inputs, "baselines": at_baselines}
        self._own_output = None
        self._kept |= {name: values_of(self.evaluator, output) for name, output in made.items() if output is not None}

    def results(self, attributions: Any, delta: Tensor | None, with_report: bool) -> Any:
        """Returns what `attribute` returns: the attributions, or a tuple with the delta and report asked for."""
        others = ([] if delta is None else [delta]) + ([self.report()] if with_report else [])
        return (attributions, *others) if others else attributions

    def results_of_targets(self, found: list[tuple[Any, Tensor | None]], with_report: bool) -> Any:
        """Returns what `attribute_targets` returns: a list of results, or a tuple of that and the report."""
        results = [attributions if delta is None else (attributions, delta) for attributions, delta in found]
        if not with_report:
            return results
        targets = tuple(target.per_example() for target in self.evaluator.targets)
        return results, replace(self.report(), targets=targets)

    def report(self) -> RunReport:
        """Returns the report of the call, after `integrate`."""
        lean, done = self.evaluator.lean, self._done
        if done is None:
            raise RuntimeError("igfast: nothing was integrated")  # not reachable from the public API
        device = self.evaluator.inputs.device
        return RunReport(
            n_rows=sum(rows * count for rows, count in done.chunks.items()),
            n_evaluations=done.n_evaluations,
            chunks=dict(done.chunks),
            channels_last=self._plan is not None and self._plan.channels_last,
            lean=LeanReport(lean.off_because, dict(lean.swapped), dict(lean.plain)),
            peak_bytes=self.memory.peak(),
            budget_bytes=self.memory.allowed,
            seconds=time.perf_counter() - self._began,
            device=str(device),
            kernels=_kernels_on(device),
            notes=tuple(self._notes),
            ends=self._ends[0] if self._ends else None,
            convergence=done.convergence,
            spread=self._spread,
        )

    def _find_facts(self) -> Facts:
        """Returns the facts that earlier calls of this kind found; without any, makes the caller's own call."""
        evaluator = self.evaluator
        kind = None if self.kind is None else (self.kind, self.options.memory_budget, self._own_call.inputs.batch)
        self._facts_key = key_of(evaluator, kind)
        facts = remembered.get(evaluator.forward_func, self._facts_key) if self._facts_key is not None else None
        if facts is None:
            facts, output = discover(self._own_call)
            if self.own_call is None:
                self._own_output = output
            if output is None:
                self._facts_key = None  # a call that has more memory may find out more
                self._notes.append("the inputs do not fit in one forward pass: their rows are taken to be independent")
                if facts.gains_channels_last:
                    self._notes.append("channels-last path points, without memory to compare their outputs")
                    warn(f"the inputs do not fit in one forward pass, so igfast uses {self._notes[-1]}")
        evaluator.explains_integers = self._own_call.explains_integers = False
        return facts

    @property
    def _own_call(self) -> ForwardFunction:
        """The caller's own call."""
        return self.evaluator if self.own_call is None else self.own_call

    def _remember(self, facts: Facts) -> None:
        if self._facts_key is not None:
            remembered.put(self.evaluator.forward_func, self._facts_key, facts)

    def _apply(self, facts: Facts) -> None:
        """Sets the evaluator to whole steps where rows belong together; otherwise checks the number of targets."""
        self._own_call.output_dim = self.evaluator.output_dim = facts.output_dim
        self._own_call.has_fast_path = self.evaluator.has_fast_path = facts.has_fast_path
        if facts.why_whole:
            self.evaluator = self.evaluator.in_whole_steps(facts.why_whole)
        else:
            for target in self.evaluator.targets:
                target.check_count(self.evaluator.inputs.batch)

    def _execution(self, facts: Facts, n_steps: int) -> tuple[Execution, Facts]:
        """Returns how the chunks are executed, and the facts with what was found out for that."""
        forward_func, lean = self.evaluator.forward_func, self.options.lean
        module, device = module_of(forward_func), self.evaluator.inputs.device
        execution = partial(
            Execution,
            module=module,
            hooked=self.hooked,
            device=device,
            recomputes=facts.recomputes,
            weights=partial(weights_behind, forward_func),
        )
        if lean is False:
            return execution("lean=False"), facts
        because = (facts.not_lean if lean == "auto" else "") or why_not_lean() or facts.why_compiled
        if not because and lean == "auto" and not facts.why_whole and self._may_be_small(n_steps):
            known = facts.plain_bytes
            kept = plain_bytes(self.evaluator, _SMALL_BYTES) if known is None else known
            facts = replace(facts, plain_bytes=kept)
            if self._is_small(kept * n_steps):
                because = f"plain autograd keeps little here, and is faster on {device}"
        return execution(because, required=lean is True), facts

    def _may_be_small(self, n_steps: int) -> bool:
        """Returns whether plain autograd may be faster and need little memory; it keeps the inputs at least."""
        inputs = self.evaluator.inputs
        return inputs.device.type in _PLAIN_IS_FASTER and self._is_small(inputs.batch * inputs.row_bytes * n_steps)

    def _is_small(self, n_bytes: int) -> bool:
        """Returns whether plain autograd may keep so many bytes for all path points at once."""
        return n_bytes <= _SMALL_BYTES and (self.memory.allowed is None or n_bytes <= self.memory.allowed // 4)

    def _integrated_where_rows_agree(self, quadrature: Quadrature, sums: tuple[Tensor, ...], facts: Facts) -> Facts:
        """Integrates, in whole steps where rows turn out to belong together, and returns the updated facts."""
        measured = ""
        while True:
            self._apply(facts)
            self._keep_values()
            if facts.why_whole:
                self._notes.append(f"whole steps, one at a time: {facts.why_whole}")
            plan, before = self._planned(quadrature, facts), random_state(self.evaluator.inputs.device)
            try:
                facts = self._attempt(quadrature, sums, plan, facts)
            except RowsDependError as error:
                said, refuses_layout = str(error), isinstance(error, _RefusesLayoutError)
            else:
                break
            before.restore()  # outside the handler, whose traceback holds the failed chunk's tensors
            self._ends = None
            for acc in sums:
                acc.zero_()
            if refuses_layout:
                facts = replace(facts, gains_channels_last=False)
            else:
                measured = said
                facts = replace(facts, why_whole=measured)
        if measured:
            warn(
                f"{measured}, so each step went through the model as a whole, as Captum's "
                "internal_batch_size=number of examples does it; this takes longer"
            )
        return facts

    def _planned(self, quadrature: Quadrature, facts: Facts) -> ChunkPlan:
        inputs = self.evaluator.inputs
        n_rows, row_bytes = inputs.batch * quadrature.n_steps, inputs.row_bytes
        is_on_cpu = inputs.device.type == "cpu"
        # On a GPU, PyTorch's batch norms are slow on channels-last images; those of lean execution are not. A ResNet-50
        # took 0.85 of the time (bfloat16 0.82) and 0.8 of the memory, without lean 1.22 of the time (16 images, H200).
        is_fast = is_on_cpu or (not self.evaluator.lean.off_because and kernels_for(inputs.device))
        channels_last = facts.gains_channels_last and is_fast and any(map(may_be_channels_last, inputs.x))
        if inputs.joint:
            return ChunkPlan(n_rows=n_rows, row_bytes=row_bytes)
        step = self._own_call.inputs.batch if quadrature.in_steps else 1
        plan = ChunkPlan(
            batch=step, n_rows=n_rows, row_bytes=row_bytes, channels_last=channels_last, most_rows=facts.most_rows
        )
        if self.internal_batch_size is not None:
            plan = replace(plan, rows=min(self.internal_batch_size, n_rows, facts.most_rows or n_rows))
            return replace(plan, most_rows=plan.rows).growing(WATCHED) if self.memory.is_watched else plan
        plan = plan.growing(limits_of(inputs.device.type, self.memory.is_watched))
        if plan.rows == n_rows or self.evaluator.gives_layers_values:
            return plan
        return replace(plan, weight_bytes=weight_bytes(module_of(self.evaluator.forward_func), self.memory.device))

    def _attempt(self, quadrature: Quadrature, sums: tuple[Tensor, ...], plan: ChunkPlan, facts: Facts) -> Facts:
        inputs = self.evaluator.inputs
        loop = self._loop(plan)
        guard = Guard(self.evaluator, self._own_call, quadrature.in_steps, set(facts.agrees))
        paths = list(map(straight_line, inputs.x, inputs.baselines))
        gradients = Gradients(paths, self.evaluator, loop, None if inputs.joint else guard)
        accumulators = tuple(acc.unsqueeze(0) for acc in sums) if inputs.joint else sums
        total = plan.n_rows if quadrature.in_steps else None
        with tqdm(total=total, desc="igfast", unit="row") if self.options.show_progress else nullcontext() as bar:
            gradients.on_rows = None if bar is None else bar.update
            try:
                integrated = self.evaluator.integrated
                convergence = quadrature.integrate(gradients, integrated, accumulators, self._path_ends, self.memory)
            except Exception as error:
                refusal = _refusal(error, plan) if guard.pending else None
                if refusal is None:
                    raise
                raise refusal from None
        self._done = _Done(gradients.chunks, gradients.not_finite, loop.n_evaluations, convergence)
        self._plan = loop.plan
        if guard.unchecked:
            ways = ", ".join(sorted(guard.unchecked))
            self._notes.append(f"no memory to compare outputs with those of a step alone: {ways}")
            warn(f"path points are taken to be independent of each other, as there is {self._notes[-1]}")
        return replace(
            facts,
            agrees=facts.agrees | (guard.agrees - guard.unchecked - guard.blind),
            most_rows=loop.plan.rows if loop.was_halved else facts.most_rows,
            n_savings=facts.n_savings + loop.n_savings,
        )

    def _loop(self, plan: ChunkPlan) -> Loop:
        shapes = ", ".join(str((1, *x.shape[1:])) for x in self.evaluator.inputs.x)
        return Loop(plan, self.memory, self.evaluator.save_memory, f"one path point, {shapes},", self._notes)

    def _path_ends(self) -> list[tuple[Tensor, Tensor]]:
        """Returns each target's values where the paths end and begin."""
        if self.evaluator.starts_at_baselines:
            return self._compute_ends()
        return list(zip(self._at_inputs(), self._values_at(0.0, self.evaluator.start_output), strict=True))

    def _at_inputs(self) -> list[Tensor]:
        """Returns each target's values at the inputs, from the caller's own call if that was made."""
        if "inputs" in self._kept:
            return self._kept["inputs"]
        output = self._own_output
        return self._values_at(1.0, self.evaluator.own_output if output is None else lambda: output)

    def _values_at(self, alpha: float, whole: Callable[[], Any]) -> list[Tensor]:
        inputs = self.evaluator.inputs
        rows = inputs.batch if self.own_call is None or self._plan is None or inputs.joint else self._plan.rows
        return values_at(self.evaluator, alpha, whole, rows, self._loop)


class _RefusesLayoutError(RowsDependError):
    """The model does not take channels-last images."""


def _refusal(error: Exception, plan: ChunkPlan) -> RowsDependError | None:
    """Returns why a model that took the caller's own call refuses a chunk; None for errors with other causes."""
    if isinstance(error, (RowsDependError, IgfastError, Warning)) or must_pass(error):
        return None  # a warning is an error where the user has it so
    if plan.channels_last:  # the model may call `view` on its input
        return _RefusesLayoutError()
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    return RowsDependError(
        f"forward_func does not take other numbers of path points in one batch than there are examples ({said})"
    )


def _kernels_on(device: torch.device) -> str:
    """Returns what igfast's operators run on: an instruction set, "cuda", or "none" for plain PyTorch."""
    if not kernels_for(device):
        return "none"
    return str(ops.build_info()["isa"]) if device.type == "cpu" else device.type
