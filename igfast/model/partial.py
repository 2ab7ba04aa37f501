"""Runs the forward function from, or up to, a layer, for layer and neuron attributions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from igfast.errors import IgfastError, OutputError, SelectorError, SelectorTypeError
from igfast.interrupts import must_pass
from igfast.model.forward import ForwardFunction, copied
from igfast.model.tap import LayerTap, Values
from igfast.request.inputs import describe

Selector = int | tuple[int | slice, ...] | Callable[[Any], Tensor]


@dataclass(kw_only=True)
class FromLayer(ForwardFunction):
    """The forward function of the layers' outputs (or inputs), with the model's own inputs held at the caller's.

    Nothing before the layers needs a gradient, so grad mode is turned on only when the first layer is reached. For
    models that set grad mode themselves, grad mode is on throughout.

    Attributes:
        tap: the attached layers.
        per_layer: number of tensors of each layer; their sum is the number of `inputs`.
        group: for each tensor, how many of its entries belong to one example (windows of an image, say).
        output_at_inputs: the output of the caller's own call.
        output_at_baselines: the output of the same call at the baselines; None where those are the layers' values.
    """

    tap: LayerTap
    per_layer: tuple[int, ...]
    group: tuple[int, ...]
    output_at_inputs: Any = None
    output_at_baselines: Any = None
    starts_at_baselines: ClassVar[bool] = False  # what goes around the layers stays at the inputs
    _records_throughout: bool = field(default=False, init=False)

    def values_of_layers(self) -> Values:
        """Returns the layers' values at the inputs, shaped as the layers gave them."""
        x = self.inputs.join(self.inputs.x)
        return tuple(v if k == 1 else v.flatten(0, 1) for v, k in zip(x, self.group, strict=True))

    def own_output(self) -> Any:
        """Returns the output of the caller's own call, which was made to read the layers' values."""
        return self.output_at_inputs

    def take_outputs(self) -> tuple[Any, Any]:
        """Returns the outputs of the calls that read the layers' values, and lets go of them."""
        made = self.output_at_inputs, self.output_at_baselines
        self.output_at_inputs = self.output_at_baselines = None
        return made

    def baseline_output(self) -> Any:
        """Returns the output of the call at the baselines, which was made to read the layers' values there, if it was.

        Otherwise the model is run with the layers' values replaced.
        """
        return self.start_output() if self.output_at_baselines is None else self.output_at_baselines

    def _call(self, points: Values, example: Tensor) -> Any:
        joined = self.inputs.join(points)
        tensors = iter(p if k == 1 else p.flatten(0, 1) for p, k in zip(joined, self.group, strict=True))
        values = [tuple(next(tensors) for _ in range(n)) for n in self.per_layer]
        args = self._args_for(example)
        records = torch.is_grad_enabled()

        def call() -> Any:
            return self._checked(*args)

        if not records or self._records_throughout:
            return self.tap.replace(call, values, lambda: None)
        with torch.no_grad(), self._as_with_graph():
            output = self.tap.replace(call, values, lambda: torch.set_grad_enabled(True))
            lasted = torch.is_grad_enabled()
        has_no_graph = isinstance(output, Tensor) and not output.requires_grad  # perhaps to weights before the layer
        if not lasted or has_no_graph:
            self._records_throughout = True
            return self._call(points, example)
        return output

    def _unused(self, index: int) -> str:
        return (
            f"tensor {index} of the layer's {self.tap.what} does not influence the output, so it has no attribution. "
            'Where attribute takes grad_kwargs, {"materialize_grads": True} makes it 0'
        )


@dataclass(kw_only=True)
class ToLayer(ForwardFunction):
    """The forward function up to a layer, of which a selector takes one number per example (or sums a region).

    Attributes:
        tap: the attached layer.
        selector: an int or a tuple that indexes the layer's output (or input), or a function of that.
    """

    tap: LayerTap
    selector: Selector
    gives_layers_values: ClassVar[bool] = True
    _stops: bool | None = field(default=None, init=False)  # no graph behind the layer; None until that was tried

    def own_output(self) -> Any:
        """Returns the layer's values in the caller's own call, forward only."""
        return self._without_graph(
            lambda inputs: self._values_of(inputs, lambda: tuple(map(copied, self.args))),
            self.inputs.join(self.inputs.x),
        )

    def n_entries(self, output: Any) -> int:
        """Returns the number of selected values; if there is one for all rows, the number of examples."""
        selected = select_neuron(output, self.selector, self.tap.what)
        return self.inputs.batch if selected.dim() == 0 else int(selected.shape[0])

    def why_output_is_joint(self, output: Any) -> str:
        """Returns why the layer's values make rows belong together (depend on each other); else empty."""
        selected = select_neuron(output, self.selector, self.tap.what)
        if selected.dim() == 0:
            return "neuron_selector returns one number for all examples"
        if selected.shape[0] == self.inputs.batch:
            return ""
        return f"the layer's {self.tap.what} has {selected.shape[0]} entries for {self.inputs.batch} examples"

    def comparable(self, output: Any) -> Tensor:
        """Returns the selected values."""
        return select_neuron(output, self.selector, self.tap.what)

    def selected(self, output: Any, example: Tensor) -> list[Tensor]:
        """Returns the selected values, (rows,); of a whole step, all that there are."""
        selected = select_neuron(output, self.selector, self.tap.what)
        if not self.inputs.joint and (selected.dim() == 0 or selected.shape[0] != example.shape[0]):
            raise OutputError(
                f"the layer's {self.tap.what} must have one entry per example, {example.shape[0]}; neuron_selector "
                f"left {describe(selected)}"
            )
        return [selected]

    def _call(self, points: Values, example: Tensor) -> Any:
        return self._values_of(self.inputs.join(points), lambda: self._args_for(example))

    def _values_of(self, inputs: Values, args: Callable[[], tuple[Any, ...]]) -> Any:
        """Returns the layer's values, with no graph behind the layer unless the model needs one to differentiate."""
        if torch.is_grad_enabled() and self._stops is None:
            try:  # with copies, as the model may work in place before it fails
                values = self._read(tuple(x.clone() for x in inputs), args(), stops=True)
            except Exception as error:  # a model that differentiates may raise anything
                if isinstance(error, (IgfastError, Warning)) or must_pass(error):
                    raise
            else:
                self._stops = True
                return values
            values = self._read(inputs, args(), stops=False)
            self._stops = False
            return values
        return self._read(inputs, args(), bool(self._stops))

    def _read(self, inputs: Values, args: tuple[Any, ...], stops: bool) -> Any:
        (values,), _ = self.tap.read(lambda: self._checked(*inputs, *args), stops)
        return values


def parse_selector(selector: Any) -> tuple[int | slice, ...]:
    """Returns the indices of a neuron; raises SelectorTypeError if they are neither integers nor slices."""
    place = tuple(selector) if isinstance(selector, (tuple, list)) else (selector,)
    try:
        if any(isinstance(index, bool) for index in place):
            raise TypeError
        return tuple(index if isinstance(index, slice) else operator.index(index) for index in place)
    except TypeError:
        raise SelectorTypeError(
            f"neuron_selector must be an int, a tuple of ints and slices, or a function; got {describe(selector)}"
        ) from None


def select_neuron(values: Values, selector: Any, what: str) -> Tensor:
    """Returns one number per row of a layer's values, (rows,), or one for all rows, 0-d.

    Args:
        values: what the layer gave out or took in.
        selector: an int, a tuple of ints and slices (regions are summed, as in Captum). Or a function of the tensor (of
            the tuple, if there are several) that returns one number per example, or one for all of them.
        what: "output" or "input", for messages.

    Raises:
        SelectorTypeError: the selector is of another type.
        SelectorError: the selector does not fit the values.
    """
    if callable(selector):
        selected = selector(values if len(values) > 1 else values[0])
        if not isinstance(selected, Tensor) or (selected.dim() > 0 and selected.numel() != selected.shape[0]):
            raise SelectorError(
                "neuron_selector must return a tensor with one number per example, (batch,), or one number; got "
                f"{describe(selected)}"
            )
        return selected.reshape(-1) if selected.dim() > 0 else selected
    if len(values) > 1:
        raise SelectorError(
            f"the layer's {what} is {len(values)} tensors: pass a function as neuron_selector that takes the tuple"
        )
    place = parse_selector(selector)
    tensor = values[0]
    if tensor.dim() == 0:
        raise SelectorError(f"the layer's {what} is {describe(tensor)}, with no examples: pass a function that selects")
    rest = tensor.shape[len(place) + 1 :]  # of sizes 1, as after a global pooling: (batch, channels, 1, 1)
    sums = any(isinstance(index, slice) for index in place)
    if len(place) > tensor.dim() - 1 or (math.prod(rest) != 1 and not sums):
        raise SelectorError(
            f"neuron_selector has {len(place)} indices, but the layer's {what} is {describe(tensor)}, which has "
            f"{tensor.dim() - 1} dimensions after the examples"
        )
    for position, (index, size) in enumerate(zip(place, tensor.shape[1:], strict=False)):
        if isinstance(index, int) and not -size <= index < size:
            raise SelectorError(
                f"neuron_selector is {selector}, out of range for dimension {position + 1} of the layer's {what}, "
                f"which has size {size}: {describe(tensor)}"
            )
    selected = tensor[(slice(None), *place)]
    return selected.reshape(selected.shape[0], -1).sum(1)
