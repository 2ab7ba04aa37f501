"""Calls the user's forward function on a chunk of path points and takes the gradient of the target's value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from igfast.attr._inputs import Inputs, describe
from igfast.attr._targets import Target
from igfast.errors import ArgumentTypeError, InputError, InputTypeError, OutputError
from igfast.lean import LeanExecution
from igfast.memory import is_out_of_memory

_IN_PLACE = "leaf Variable that requires grad"
"""Part of what autograd says when a forward function works in place on its input, or on a view of it."""


def as_tuple(additional_forward_args: Any) -> tuple[Any, ...]:
    """The additional arguments as a tuple."""
    if additional_forward_args is None:
        return ()
    return additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)


def parse_additional_args(additional_forward_args: Any, batch: int, joint: bool = False) -> tuple[Any, ...]:
    """The additional arguments as a tuple.

    Args:
        additional_forward_args: as the caller passed them.
        batch: number of examples.
        joint: whether the inputs are one joint example, which allows any number of entries.

    Raises:
        InputError: a tensor's first dimension is neither 1 nor the number of examples.
    """
    args = as_tuple(additional_forward_args)
    for index, arg in enumerate(args):
        if isinstance(arg, Tensor) and arg.dim() > 0 and not joint and arg.shape[0] not in (1, batch):
            raise InputError(
                f"additional_forward_args[{index}] is repeated along the path, so its first dimension must be the "
                f"number of examples, {batch}, or 1; got {describe(arg)}. Close over a tensor that has no "
                "examples: forward_func=lambda x: model(x, tensor)"
            )
    return args


@dataclass(kw_only=True)
class ForwardFunction:
    """A forward function with its arguments and target bound: from path points to values and gradients.

    One is made for each call of `attribute`, so what it learns on the way (`_clones`) is not shared between threads.

    Attributes:
        forward_func: takes the inputs and the additional arguments, returns (rows, ...).
        inputs: the parsed inputs.
        args: additional arguments; tensors are repeated per row, the rest is passed as is.
        target: which number of the output is attributed.
        lean: whether the forward pass keeps only what these gradients need.
        unused_is_zero: whether an input that the output does not depend on has gradient 0, and is no error.
    """

    forward_func: Callable[..., Any]
    inputs: Inputs
    args: tuple[Any, ...]
    target: Target
    lean: LeanExecution
    unused_is_zero: bool = False
    runs_whole_model: ClassVar[bool] = True
    _clones: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not callable(self.forward_func):
            raise ArgumentTypeError(f"forward_func must be callable; got {describe(self.forward_func)}")

    def gradient(
        self, make_points: Callable[[], tuple[Tensor, ...]], example: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Gradients of the target with respect to the path points, and the target's values.

        Args:
            make_points: returns the path points, (rows, *features) each, detached.
            example: (rows,) int64.

        Returns:
            The gradients, shaped as the points, and the values, (rows,), without graph.

        Raises:
            OutputError: the output has no graph to the inputs, or is not one number per row.
            InputError: the output does not depend on one of the inputs.
            LeanError: lean execution is required, and the model does not take it.
        """
        return self.lean.attempt(lambda: self._gradient(make_points(), example))

    def _gradient(self, points: tuple[Tensor, ...], example: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        with torch.enable_grad():
            leaves = tuple(point.detach().requires_grad_() for point in points)
            with self.lean.active():
                values = self._values(leaves, example)
            # Of the sum: one for each row is what grad_outputs= would say, but that imports 45 MB of symbolic shapes.
            grads = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
        if self.unused_is_zero:
            used = zip(grads, leaves, strict=True)
            grads = tuple(torch.zeros_like(leaf) if grad is None else grad for grad, leaf in used)
        for index, grad in enumerate(grads):
            if grad is None:
                raise InputError(self._unused(index))
        return grads, values.detach()

    def _unused(self, index: int) -> str:
        return (
            f"inputs[{index}] is not used by forward_func, so it has no attribution. Pass it in "
            "additional_forward_args instead"
        )

    def value(self, points: tuple[Tensor, ...], example: Tensor) -> Tensor:
        """The target's values, (rows,), forward only."""
        with torch.no_grad():
            return self._select(self._call(points, example), example)

    def save_memory(self) -> str:
        """Takes one more measure that saves memory and costs time; returns which, or "" if none is left."""
        return self.lean.save_more(self.inputs.device)

    def _values(self, leaves: tuple[Tensor, ...], example: Tensor) -> Tensor:
        """The target's values with their graph."""
        output = self._call_with_graph(leaves, example)
        values = self._select(output, example)
        if not values.requires_grad:
            raise OutputError(
                f"forward_func returned {describe(output)} without a graph to its inputs, so there is no gradient. "
                "Look for .detach(), torch.no_grad(), torch.inference_mode() or integer outputs in it"
            )
        if values.is_complex():
            raise OutputError(f"forward_func must return real numbers to have a gradient; got {describe(output)}")
        return values

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
        args = tuple(self._repeat(arg, example) for arg in self.args)
        try:
            return self.forward_func(*self.inputs.join(points), *args)
        except (RuntimeError, TypeError, IndexError) as error:
            explained = self._explain(error)
            if explained is None:
                raise
            raise explained from error

    def _select(self, output: Any, example: Tensor) -> Tensor:
        return self.target.select(output, example, self.inputs.joint)

    def _repeat(self, arg: Any, example: Tensor) -> Any:
        """A tensor argument with one entry per row (a copy, so a forward function may work in place on it).

        One that has no examples, which only layer attributions take, is passed as it is.
        """
        if not isinstance(arg, Tensor) or arg.dim() == 0:
            return arg
        if self.inputs.joint:
            return arg.repeat(example.shape[0], *[1] * (arg.dim() - 1))
        if arg.shape[0] not in (1, self.inputs.batch):
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
        if self.inputs.integer and _IN_PLACE not in text:
            index = self.inputs.integer[0]
            return InputTypeError(
                f"forward_func failed on path points of inputs[{index}]: the input holds integers, but points between "
                f"the baseline and it are {self.inputs.x[index].dtype}. Token ids have no path between them: attribute "
                "the output of the embedding layer instead (LayerIntegratedGradients(forward_func, "
                f"model.embedding)). The forward function said: {text.splitlines()[0] if text else type(error)}"
            )
        return None


@dataclass(kw_only=True)
class CustomGradient(ForwardFunction):
    """A forward function whose gradient is taken by a function of Captum's kind.

    Captum's layer and neuron attributions work by replacing `gradient_func` of an IntegratedGradients instance, and so
    may its users.

    Attributes:
        gradient_func: called with forward_fn, inputs, target_ind and additional_forward_args; returns the gradients.
    """

    gradient_func: Callable[..., tuple[Tensor, ...]]

    def gradient(  # type: ignore[override]
        self, make_points: Callable[[], tuple[Tensor, ...]], example: Tensor
    ) -> tuple[tuple[Tensor, ...], None]:
        """As `ForwardFunction.gradient`, without values: `gradient_func` does not return them."""
        points = make_points()
        with torch.enable_grad():
            leaves = tuple(point.detach().requires_grad_() for point in self.inputs.join(points))
            grads = self.gradient_func(
                forward_fn=self.forward_func,
                inputs=leaves,
                target_ind=self.target.for_captum(example),
                additional_forward_args=tuple(self._repeat(arg, example) for arg in self.args) or None,
            )
        return tuple(grad.detach().reshape(point.shape) for grad, point in zip(grads, points, strict=True)), None
