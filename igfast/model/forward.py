"""Calls the user's forward function, as the caller would and on path points, and takes the gradient of the target."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch._C import _len_torch_function_stack

from igfast.errors import ArgumentTypeError, IgfastError, InputError, InputTypeError, OutputError, TargetError
from igfast.interrupts import must_pass
from igfast.lean import Execution
from igfast.memory.recovery import free_memory, is_out_of_memory
from igfast.model.fast_path import NoFastPath, has_fast_path
from igfast.model.independence import RowsDependError
from igfast.model.state import failure_leaves_no_hooks
from igfast.request.inputs import Inputs, describe
from igfast.request.several_targets import top_targets
from igfast.request.target import Target, entries_of
from igfast.rng import random_state_kept

_Forward = TypeVar("_Forward", bound="ForwardFunction")
_IN_PLACE = "leaf Variable that requires grad"
"""Part of autograd's message when a forward function works in place on its input, or on a view of its input."""


def copied(arg: Any) -> Any:
    """Returns a copy of a dense tensor, for a forward function that works in place; anything else as it is."""
    is_dense = isinstance(arg, Tensor) and arg.layout is torch.strided and not arg.is_nested and arg.dim() > 0
    return arg.detach().clone() if is_dense else arg


@dataclass(kw_only=True)
class ForwardFunction:
    """A forward function with its arguments and target bound, for one call of `attribute`.

    While rows are independent, path points of any steps and examples are stacked, and arguments are repeated for them.
    Rows belong together (`inputs.joint`) where the output of one example depends on the others. A path point is then a
    whole step: the caller's own call at another alpha, with arguments and target as passed.

    Attributes:
        forward_func: takes the inputs and the additional arguments.
        inputs, args: the parsed inputs, and the additional arguments as the caller passed them.
        targets: which numbers of the output are attributed, each by itself; nearly always one.
        lean: lean execution, which keeps in the forward pass only what the gradient of the input needs.
        unused_is_zero: whether the gradient of an input without influence is 0 instead of an error.
        output_dim: dimensions of an output of several rows, or None; some models drop one for a single row.
        has_fast_path: whether the model has modules that compute something else without a graph; None until asked.
        is_compared: whether a chunk is compared: `gradient` sets `compared_output`, and checks its number of entries.
        compared_output: `comparable` of the last `gradient`'s output.
        explains_integers: whether failures may come from integers that became floating; False after a call succeeded.
    """

    forward_func: Callable[..., Any]
    inputs: Inputs
    args: tuple[Any, ...]
    targets: tuple[Target, ...] = ()
    lean: Execution = field(default_factory=lambda: Execution("nothing was decided yet"))
    unused_is_zero: bool = False
    output_dim: int | tuple[int, ...] | None = None
    has_fast_path: bool | None = None
    is_compared: bool = False
    compared_output: Any = None
    explains_integers: bool = True
    gives_layers_values: ClassVar[bool] = False  # a tuple of tensors, from a part of the model
    starts_at_baselines: ClassVar[bool] = True
    _clones: bool = field(default=False, init=False)
    _differentiates: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not callable(self.forward_func):
            raise ArgumentTypeError(f"forward_func must be callable; got {describe(self.forward_func)}")

    @property
    def integrated(self) -> Inputs:
        """The inputs that integrals are shaped as: `inputs`, unless `integrand` gives gradients another shape."""
        return self.inputs

    def in_whole_steps(self: _Forward, why: str) -> _Forward:
        """Returns a copy that takes a whole step at a time; `why` is the reason."""
        return replace(self, inputs=self.inputs.as_one_example(why), is_compared=False, compared_output=None)

    def why_whole_steps(self) -> str:
        """Returns why inputs or arguments make rows belong together; empty if they do not."""
        if self.inputs.joint:
            return self.inputs.why_joint
        for index, arg in enumerate(self.args):
            if isinstance(arg, Tensor) and arg.dim() > 0 and not self._is_repeatable(arg):
                return (
                    f"additional_forward_args[{index}] is {describe(arg)}, not one entry for each of the "
                    f"{self.inputs.batch} examples"
                )
        return ""

    def why_output_is_joint(self, output: Any) -> str:
        """Returns why the caller's own output makes rows belong together; empty if it does not."""
        n_entries = self.n_entries(output)
        if n_entries == self.inputs.batch:
            return ""
        return f"the output has {n_entries} entries for {self.inputs.batch} examples"

    def n_entries(self, output: Any) -> int:
        """Returns the number of entries of an output; raises as `entries_of`."""
        return entries_of(output)

    def own_output(self) -> Any:
        """Returns the output of the caller's own call, forward only."""
        return self._without_graph(
            lambda inputs: self._checked(*inputs, *map(copied, self.args)),
            self.inputs.join(self.inputs.x),
        )

    def _without_graph(self, call: Callable[[tuple[Tensor, ...]], Any], points: tuple[Tensor, ...]) -> Any:
        """Runs a forward pass without a graph, or drops the graph where the model itself differentiates."""
        if not self._differentiates:
            try:
                with torch.no_grad(), self._as_with_graph():
                    return call(tuple(map(copied, points)))
            except Exception as error:  # models that differentiate may raise anything here
                if isinstance(error, IgfastError) or must_pass(error):
                    raise
        with torch.enable_grad():
            output = call(tuple(copied(point).requires_grad_() for point in points))
        self._differentiates = True
        if isinstance(output, tuple):  # a layer's values
            return tuple(value.detach() for value in output)
        return output.detach() if isinstance(output, Tensor) else output

    def _as_with_graph(self) -> AbstractContextManager[Any]:
        """Returns the context in which a pass without a graph computes what one with a graph does."""
        if self.has_fast_path is None:
            self.has_fast_path = has_fast_path(self.forward_func)
        is_off = not self.has_fast_path or _len_torch_function_stack()  # any mode turns it off
        return nullcontext() if is_off else NoFastPath()

    def output(self, points: tuple[Tensor, ...], example: Tensor) -> Any:
        """Returns the output at path points, forward only."""
        output = self._without_graph(lambda copies: self._call(copies, example), points)
        return self.with_entries(output, example)

    def output_with_graph(self, points: tuple[Tensor, ...], example: Tensor) -> Any:
        """Returns the output as `gradient` computes it: PyTorch may compute another one without a graph."""

        def forward() -> Any:
            with torch.enable_grad():
                leaves = tuple(point.detach().requires_grad_() for point in points)
                with self.lean.uncounted(), self.lean.active():
                    output = self.with_entries(self._call_with_graph(leaves, example), example)
            return output.detach() if isinstance(output, Tensor) else output

        return self.lean.attempt(forward)

    def with_entries(self, output: Any, example: Tensor) -> Any:
        """Returns an output with its dimension of entries, also where the model dropped that for a single row."""
        if self.output_dim is None or example.shape[0] != 1:
            return output
        if isinstance(self.output_dim, tuple):  # a layer's values
            return tuple(_with_dim(value, dim) for value, dim in zip(output, self.output_dim, strict=True))
        return _with_dim(output, self.output_dim)

    def take_outputs(self) -> tuple[Any, Any]:
        """Returns the outputs at the inputs and at the baselines, if calls before made them, and lets go of them."""
        return None, None

    def baseline_output(self) -> Any:
        """Returns the output of the caller's own call at the baselines, forward only."""
        return self.start_output()

    def start_output(self) -> Any:
        """Returns the output where the paths begin, forward only."""
        return self.output(tuple(map(_expanded, self.inputs.baselines, self.inputs.x)), self.all_examples())

    def comparable(self, output: Any) -> Tensor:
        """Returns the part of an output that is compared to tell whether rows are independent, (rows, *)."""
        self.n_entries(output)
        compared: Tensor = output
        return compared

    def all_examples(self) -> Tensor:
        """Returns the example of each row of a step, (batch,) int64."""
        return torch.arange(self.inputs.batch, device=self.inputs.device)

    def selected(self, output: Any, example: Tensor) -> list[Tensor]:
        """Returns each target's values: (rows,), or of a whole step one for each entry of the output."""
        joint = self.inputs.joint
        return [one.select_of_step(output) if joint else one.select(output, example) for one in self.targets]

    def selected_at(self, points: tuple[Tensor, ...], example: Tensor) -> list[Tensor]:
        """Returns each target's values at path points, (rows,), forward only."""
        return self.selected(self.output(points, example), example)

    def gradient(self, points: tuple[Tensor, ...], example: Tensor) -> tuple[Tensor, ...]:
        """Returns the gradients of the targets with respect to path points, target after target.

        For each target, there is one tensor for each input, shaped as the points. The forward pass is made once.

        Args:
            points: (rows, *features) each, detached.
            example: (rows,) int64.

        Raises:
            OutputError: the output has no graph to the inputs, or is not one number per row.
            InputError: the output does not depend on one of the inputs.
            LeanError: lean execution is required, but fails.
        """
        return self.lean.attempt(lambda: self._gradient(points, example))

    def save_memory(self) -> str:
        """Takes one more measure that saves memory and costs time; returns its description, or "" if none is left."""
        return self.lean.save_more(self.inputs.device)

    def _gradient(self, points: tuple[Tensor, ...], example: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = tuple(point.detach().requires_grad_() for point in points)
            with self.lean.active():
                output = self.with_entries(self._call_with_graph(leaves, example), example)
                self._check_stacked(output, example)
                values = self._selected_in_chunk(output, example)
            for one in values:
                _check_graph(output, one)
            self.compared_output = self.comparable(output).detach() if self.is_compared else None
            del output
            grads: list[Tensor] = []
            for target, found in enumerate(self.lean.gradients(values, leaves)):
                pairs = zip(found, leaves, strict=True)
                grads += [self.integrand(self._used(i, *pair), target) for i, pair in enumerate(pairs)]
                del found, pairs
        return tuple(grads)

    def integrand(self, grad: Tensor, target: int) -> Tensor:  # noqa: ARG002
        """Returns what is integrated of a target's gradient, with one entry for each row: all of it."""
        return grad

    def _used(self, index: int, grad: Tensor | None, leaf: Tensor) -> Tensor:
        if grad is None and not self.unused_is_zero:
            raise InputError(self._unused(index))
        return torch.zeros_like(leaf) if grad is None else grad

    def _check_stacked(self, output: Any, example: Tensor) -> None:
        """Raises RowsDependError where stacked rows that are to be compared do not have one entry each."""
        if self.is_compared and not self.inputs.joint and self.n_entries(output) != example.shape[0]:
            raise RowsDependError(
                f"forward_func returns {self.n_entries(output)} entries for {example.shape[0]} examples in one batch, "
                f"and {self.inputs.batch} for the {self.inputs.batch} of the inputs"
            )

    def _selected_in_chunk(self, output: Any, example: Tensor) -> list[Tensor]:
        """Returns each target's values; raises RowsDependError where only rows that depend on each other explain it."""
        try:
            return self.selected(output, example)
        except (OutputError, TargetError) as error:
            if not self.is_compared or self.inputs.joint:
                raise
            raise RowsDependError(f"forward_func returns another output for {example.shape[0]} examples") from error

    def _unused(self, index: int) -> str:
        return (
            f"inputs[{index}] is not used by forward_func, so it has no attribution. Pass it in "
            "additional_forward_args instead"
        )

    def _call_with_graph(self, leaves: tuple[Tensor, ...], example: Tensor) -> Any:
        """Calls the forward function, on copies of the leaves if the function works in place on its input."""
        if not self._clones:
            try:
                return self._call(leaves, example)
            except RuntimeError as error:
                if _IN_PLACE not in str(error):
                    raise
                self._clones = True
        # Autograd refuses in-place work on a leaf. A copy is no leaf, and the path points stay as they are.
        return self._call(tuple(leaf.clone() for leaf in leaves), example)

    def _call(self, points: tuple[Tensor, ...], example: Tensor) -> Any:
        return self._checked(*self.inputs.join(points), *self._args_for(example))

    def _args_for(self, example: Tensor) -> tuple[Any, ...]:
        return tuple(copied(arg) if self.inputs.joint else self._repeat(arg, example) for arg in self.args)

    def _checked(self, *args: Any) -> Any:
        """Calls the forward function; failures that have a known cause become an error of igfast's (`_explain`)."""
        try:
            with failure_leaves_no_hooks(self.forward_func):
                return self.forward_func(*args)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            explained = self._explain(error)
            if explained is None:
                raise
            raise explained from error

    def _is_repeatable(self, arg: Tensor) -> bool:
        return arg.layout is torch.strided and not arg.is_nested and arg.shape[0] in (1, self.inputs.batch)

    def _repeat(self, arg: Any, example: Tensor) -> Any:
        """Returns a tensor argument with one entry per row, as a copy to work on in place; others as they are.

        For as many rows as in the caller's own call, an argument of one entry stays one: the model may not mean a row.
        """
        if not isinstance(arg, Tensor) or arg.dim() == 0 or not self._is_repeatable(arg):
            return arg
        if arg.shape[0] == self.inputs.batch:
            return arg.index_select(0, example.to(arg.device))
        if example.shape[0] == self.inputs.batch:
            return copied(arg)
        return arg.index_select(0, torch.zeros_like(example, device=arg.device))

    def _explain(self, error: Exception) -> Exception | None:
        """Returns igfast's error for a failure of a model that has a known cause; None for the model's own errors."""
        text = str(error)
        if is_out_of_memory(error):
            return None
        if "Inference tensors cannot be saved for backward" in text:
            return OutputError(
                "the model's parameters were created under torch.inference_mode(), so no gradient can pass them. "
                "Load the model outside of it, or clone its parameters outside of it"
            )
        if self.inputs.batch == 1 and "Expected more than 1 value per channel when training" in text:
            return InputError(
                "a normalisation layer in training mode takes no single example. Call eval() on the model: in training "
                "mode, path points would be normalised with each other"
            )
        if self.inputs.device.type == "meta":
            return InputError(
                f"the inputs are on the meta device and hold no numbers, and forward_func does not take them: {text}"
            )
        if self.inputs.integer and self.explains_integers and _IN_PLACE not in text:
            index = self.inputs.integer[0]
            return InputTypeError(
                f"forward_func failed on path points of inputs[{index}]: the input holds integers, but points between "
                f"the baseline and it are {self.inputs.x[index].dtype}. Token ids have no path between them: attribute "
                "the output of the embedding layer instead (LayerIntegratedGradients(forward_func, "
                f"model.embedding)). The forward function said: {text.splitlines()[0] if text else type(error)}"
            )
        return None


def with_targets(evaluator: _Forward, targets: tuple[Target, ...] | int) -> _Forward:
    """Returns the evaluator with targets: those that are given, or the k largest classes of each example.

    Runs the caller's own call for the latter, or each example alone where memory does not hold all.
    """
    if isinstance(targets, tuple):
        evaluator.targets = targets
        return evaluator
    if evaluator.inputs.batch == 0:
        return replace(evaluator, targets=(Target((0,)),) * targets)
    try:
        with random_state_kept(evaluator.inputs.device):
            output = evaluator.own_output()
    except Exception as error:
        if not is_out_of_memory(error) or evaluator.inputs.joint:
            raise
        output = None
    if output is None:  # outside the handler, whose traceback holds the failed pass
        free_memory(evaluator.inputs.device)
        rows = [slice(index, index + 1) for index in range(evaluator.inputs.batch)]
        examples = evaluator.all_examples()
        each = [evaluator.output(tuple(x[row] for x in evaluator.inputs.x), examples[row]) for row in rows]
        output = torch.cat([one.reshape(1, -1) if isinstance(one, Tensor) and one.dim() == 1 else one for one in each])
    return replace(evaluator, targets=top_targets(output, targets, evaluator.inputs.batch))


def _expanded(baseline: Tensor, x: Tensor) -> Tensor:
    """Returns a baseline in the input's shape and layout."""
    return torch.empty_like(x).copy_(baseline)


def _with_dim(value: Any, dim: int) -> Any:
    return value.unsqueeze(0) if isinstance(value, Tensor) and value.dim() == dim - 1 else value


def _check_graph(output: Any, values: Tensor) -> None:
    if not values.requires_grad:
        raise OutputError(
            f"forward_func returned {describe(output)} without a graph to its inputs, so there is no gradient. "
            "Look for .detach(), torch.no_grad(), torch.inference_mode() or integer outputs in it"
        )
    if values.is_complex():
        raise OutputError(f"forward_func must return real numbers to have a gradient; got {describe(output)}")
