"""Calls the user's forward function, as the caller would and on path points, and takes the gradient of the target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from igfast.errors import ArgumentTypeError, IgfastError, InputError, InputTypeError, OutputError
from igfast.lean import LeanExecution
from igfast.memory.recovery import is_out_of_memory
from igfast.model.independence import RowsDependError
from igfast.request.inputs import Inputs, describe
from igfast.request.target import Target

_Forward = TypeVar("_Forward", bound="ForwardFunction")
_IN_PLACE = "leaf Variable that requires grad"
"""Part of what autograd says when a forward function works in place on its input, or on a view of it."""


def as_tuple(additional_forward_args: Any) -> tuple[Any, ...]:
    """The additional arguments as a tuple."""
    if additional_forward_args is None:
        return ()
    return additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)


def copied(arg: Any) -> Any:
    """An argument that a forward function may work in place on: a copy of a dense tensor, anything else itself."""
    is_dense = isinstance(arg, Tensor) and arg.layout is torch.strided and not arg.is_nested and arg.dim() > 0
    return arg.detach().clone() if is_dense else arg


@dataclass(kw_only=True)
class ForwardFunction:
    """A forward function with its arguments and target bound.

    While rows are independent, path points of any steps and examples are stacked, and arguments are repeated for them.
    Where they are not (`inputs.joint`), a path point is a whole step: the caller's own call at another place of the
    path, with the arguments and the target as the caller passed them.

    One is made for each call of `attribute`, so what it learns on the way is not shared between threads.

    Attributes:
        forward_func: takes the inputs and the additional arguments.
        inputs: the parsed inputs.
        args: additional arguments, as the caller passed them.
        target: which number of the output is attributed.
        lean: whether the forward pass keeps only what these gradients need.
        unused_is_zero: whether an input that the output does not depend on has gradient 0, and is no error.
        output_dim: dimensions of an output of several rows, where that is known: some models drop that of a single row.
        keeps_output: whether `kept_output` is to be set, and compared.
        kept_output: what is `comparable` of the last `gradient`'s output.
        explains_integers: whether failures may come from integers that became floating; not once a call succeeded.
    """

    forward_func: Callable[..., Any]
    inputs: Inputs
    args: tuple[Any, ...]
    target: Target
    lean: LeanExecution = field(default_factory=lambda: LeanExecution("nothing was decided yet"))
    unused_is_zero: bool = False
    output_dim: int | None = None
    keeps_output: bool = False
    kept_output: Any = None
    explains_integers: bool = True
    runs_whole_model: ClassVar[bool] = True
    _clones: bool = field(default=False, init=False)
    _differentiates: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not callable(self.forward_func):
            raise ArgumentTypeError(f"forward_func must be callable; got {describe(self.forward_func)}")

    def in_whole_steps(self: _Forward, why: str) -> _Forward:
        """The same, a whole step at a time, and why."""
        return replace(self, inputs=self.inputs.as_one_example(why), keeps_output=False, kept_output=None)

    def why_whole_steps(self) -> str:
        """What of the inputs and arguments says that rows belong together; empty if nothing does."""
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
        """What of the caller's own output says that rows belong together; empty if nothing does."""
        n_entries = self.n_entries(output)
        if n_entries == self.inputs.batch:
            return ""
        return f"the output has {n_entries} entries for {self.inputs.batch} examples"

    def n_entries(self, output: Any) -> int:
        """The entries of an output.

        Raises:
            OutputTypeError: the output is not a tensor.
            OutputError: it has no dimension of entries.
        """
        return self.target.n_entries(output)

    def own_output(self) -> Any:
        """The output of the caller's own call, forward only."""
        return self._without_graph(
            lambda inputs: self._checked(self.forward_func, *inputs, *map(copied, self.args)),
            self.inputs.join(self.inputs.x),
        )

    def _without_graph(self, call: Callable[[tuple[Tensor, ...]], Any], points: tuple[Tensor, ...]) -> Any:
        """A forward pass without a graph; with one, that goes, for models that differentiate in theirs."""
        if not self._differentiates:
            try:
                with torch.no_grad():
                    return call(tuple(map(copied, points)))
            except Exception as error:  # whatever such a model raises then
                if isinstance(error, IgfastError) or is_out_of_memory(error):
                    raise
        with torch.enable_grad():
            output = call(tuple(copied(point).requires_grad_() for point in points))
        self._differentiates = True
        return output.detach() if isinstance(output, Tensor) else output

    def output(self, points: tuple[Tensor, ...], example: Tensor) -> Any:
        """The output at path points, forward only."""
        output = self._without_graph(lambda copies: self._call(copies, example), points)
        return self.with_entries(output, example)

    def output_with_graph(self, points: tuple[Tensor, ...], example: Tensor) -> Any:
        """The output as `gradient` computes it: PyTorch may compute another one where no graph is recorded."""

        def forward() -> Any:
            with torch.enable_grad():
                leaves = tuple(point.detach().requires_grad_() for point in points)
                with self.lean.uncounted(), self.lean.active():
                    output = self.with_entries(self._call_with_graph(leaves, example), example)
            return output.detach() if isinstance(output, Tensor) else output

        return self.lean.attempt(forward)

    def with_entries(self, output: Any, example: Tensor) -> Any:
        """An output with a dimension of its entries, also where the model dropped it for a single row."""
        if self.output_dim is None or example.shape[0] != 1 or not isinstance(output, Tensor):
            return output
        return output.unsqueeze(0) if output.dim() == self.output_dim - 1 else output

    def baseline_output(self) -> Any:
        """The output of the caller's own call at the baselines, forward only."""
        return self.output(tuple(map(_expanded, self.inputs.baselines, self.inputs.x)), self.all_examples())

    def comparable(self, output: Any) -> Tensor:
        """What of an output is compared to see whether rows are independent, (rows, *)."""
        self.n_entries(output)
        compared: Tensor = output
        return compared

    def all_examples(self) -> Tensor:
        """The example of each row of a step, (batch,) int64."""
        return torch.arange(self.inputs.batch, device=self.inputs.device)

    def values(self, output: Any, example: Tensor) -> Tensor:
        """The target's values: (rows,), or of a whole step as many as the output has entries."""
        return self.target.select_of_step(output) if self.inputs.joint else self.target.select(output, example)

    def value(self, points: tuple[Tensor, ...], example: Tensor) -> Tensor:
        """The target's values at path points, (rows,), forward only."""
        return self.values(self.output(points, example), example)

    def gradient(self, points: tuple[Tensor, ...], example: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the target with respect to path points.

        Args:
            points: (rows, *features) each, detached.
            example: (rows,) int64.

        Returns:
            The gradients, shaped as the points.

        Raises:
            OutputError: the output has no graph to the inputs, or is not one number per row.
            InputError: the output does not depend on one of the inputs.
            LeanError: lean execution is required, and the model does not take it.
        """
        return self.lean.attempt(lambda: self._gradient(points, example))

    def save_memory(self) -> str:
        """Takes one more measure that saves memory and costs time; returns which, or "" if none is left."""
        return self.lean.save_more(self.inputs.device)

    def _gradient(self, points: tuple[Tensor, ...], example: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = tuple(point.detach().requires_grad_() for point in points)
            with self.lean.active():
                output = self.with_entries(self._call_with_graph(leaves, example), example)
                self._check_stacked(output, example)
                values = self.values(output, example)
            _check_graph(output, values)
            self.kept_output = self.comparable(output).detach() if self.keeps_output else None
            del output
            # Of the sum: one for each row is what grad_outputs= would say, but that imports 45 MB of symbolic shapes.
            grads = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
        if self.unused_is_zero:
            used = zip(grads, leaves, strict=True)
            grads = tuple(torch.zeros_like(leaf) if grad is None else grad for grad, leaf in used)
        for index, grad in enumerate(grads):
            if grad is None:
                raise InputError(self._unused(index))
        return grads

    def _check_stacked(self, output: Any, example: Tensor) -> None:
        """Raises RowsDependError where stacked rows that are to be compared have fewer or more entries."""
        if self.keeps_output and not self.inputs.joint and self.n_entries(output) != example.shape[0]:
            raise RowsDependError(
                f"forward_func returns {self.n_entries(output)} entries for {example.shape[0]} examples in one batch, "
                f"and {self.inputs.batch} for the {self.inputs.batch} of the inputs"
            )

    def _unused(self, index: int) -> str:
        return (
            f"inputs[{index}] is not used by forward_func, so it has no attribution. Pass it in "
            "additional_forward_args instead"
        )

    def _call_with_graph(self, leaves: tuple[Tensor, ...], example: Tensor) -> Any:
        """Calls the forward function, also where it works in place on its input."""
        if not self._clones:
            try:
                return self._call(leaves, example)
            except RuntimeError as error:
                if _IN_PLACE not in str(error):
                    raise
                self._clones = True
        # Autograd refuses in-place work on a leaf; a copy of it is no leaf, and the path points stay as they are.
        return self._call(tuple(leaf.clone() for leaf in leaves), example)

    def _call(self, points: tuple[Tensor, ...], example: Tensor) -> Any:
        return self._checked(self.forward_func, *self.inputs.join(points), *self._args_for(example))

    def _args_for(self, example: Tensor) -> tuple[Any, ...]:
        return tuple(copied(arg) if self.inputs.joint else self._repeat(arg, example) for arg in self.args)

    def _checked(self, call: Callable[..., Any], *args: Any) -> Any:
        """Calls a function; two of a model's failures that have a known cause become errors of ours."""
        try:
            return call(*args)
        except (RuntimeError, TypeError, IndexError) as error:
            explained = self._explain(error)
            if explained is None:
                raise
            raise explained from error

    def _is_repeatable(self, arg: Tensor) -> bool:
        return arg.layout is torch.strided and not arg.is_nested and arg.shape[0] in (1, self.inputs.batch)

    def _repeat(self, arg: Any, example: Tensor) -> Any:
        """A tensor argument with one entry per row (a copy, so a forward function may work in place on it)."""
        if not isinstance(arg, Tensor) or arg.dim() == 0 or not self._is_repeatable(arg):
            return arg
        index = example if arg.shape[0] == self.inputs.batch else torch.zeros_like(example)
        return arg.index_select(0, index.to(arg.device))

    def _explain(self, error: Exception) -> Exception | None:
        """An error of ours for two failures of a model that have a known cause; None for its own errors."""
        text = str(error)
        if is_out_of_memory(error):
            return None
        if "Inference tensors cannot be saved for backward" in text:
            return OutputError(
                "the model's parameters were created under torch.inference_mode(), so no gradient can pass them. "
                "Load the model outside of it, or clone its parameters outside of it"
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


def _expanded(baseline: Tensor, x: Tensor) -> Tensor:
    """A baseline of the input's shape and layout."""
    return torch.empty_like(x).copy_(baseline)


def _check_graph(output: Any, values: Tensor) -> None:
    if not values.requires_grad:
        raise OutputError(
            f"forward_func returned {describe(output)} without a graph to its inputs, so there is no gradient. "
            "Look for .detach(), torch.no_grad(), torch.inference_mode() or integer outputs in it"
        )
    if values.is_complex():
        raise OutputError(f"forward_func must return real numbers to have a gradient; got {describe(output)}")
