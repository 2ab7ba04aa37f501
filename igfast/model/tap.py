"""Reads and replaces what layers take in or give out, through hooks that are always removed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel.scatter_gather import scatter

from igfast.errors import LayerError
from igfast.model.hooks import hooked
from igfast.request.inputs import describe

Values = tuple[Tensor, ...]


class LayerTap:
    """The layers of one attribution, hooked while the `attached` block lasts.

    Hooks act only in the thread that attached them, so threads may attribute on one model at the same time.

    Args:
        layers: the modules.
        at_input: whether the layers' inputs are meant, not their outputs.
        device_ids: the GPUs of an `nn.DataParallel` model, whose replicas run in threads of their own; else None.
        is_path: whether paths lead through the layers' values, so that these must be floating and have examples.

    Raises LayerError if a layer is not a module, or is given twice.
    """

    def __init__(
        self, layers: Sequence[Any], at_input: bool, device_ids: Sequence[int] | None, is_path: bool = True
    ) -> None:
        for layer in layers:
            if not isinstance(layer, nn.Module):
                raise LayerError(f"layer must be a torch.nn.Module or a list of them; got {describe(layer)}")
        if not layers or len(set(layers)) < len(layers):
            raise LayerError(f"layer must name at least one layer, and none twice; got {len(layers)}")
        self._layers = tuple(layers)
        self._at_input = at_input
        self._device_ids = list(device_ids) if device_ids and len(device_ids) > 1 else None
        self._is_path = is_path
        self._thread = threading.get_ident()
        self._act: Callable[[int, Any], Any] | None = None

    @property
    def what(self) -> str:
        """The word for what is read, for messages: "input" or "output"."""
        return "input" if self._at_input else "output"

    @contextmanager
    def attached(self) -> Iterator[LayerTap]:
        """Hooks the layers for the block, and removes the hooks afterwards, whatever happens."""

        def hook_of(index: int) -> Callable[..., Any]:
            return lambda _, *values: self._respond(index, values[-1])  # what goes in, or comes out

        with hooked(self._layers, list(map(hook_of, range(len(self._layers)))), before=self._at_input):
            yield self

    def read(self, call: Callable[[], Any], stops: bool = False) -> tuple[list[Values], Any]:
        """Runs the forward pass `call`; returns what each layer took in or gave out, and the output.

        The pass runs to its end, as code around the model may rely on that. If it `stops`, no graph is recorded after
        the last layer.
        Raises LayerError if a layer is not reached, is reached more than once, or has values without a path.
        """
        seen: dict[int, dict[torch.device, Values]] = {}

        def act(index: int, value: Any) -> None:
            values = self._tensors(index, value)
            if values[0].device in seen.setdefault(index, {}):
                raise LayerError(self._called_again(index))
            seen[index][values[0].device] = tuple(v.clone() for v in values)
            if stops and len(seen) == len(self._layers) and self._device_ids is None:
                torch.set_grad_enabled(False)

        with torch.set_grad_enabled(torch.is_grad_enabled()):  # put back at the end
            output = self._with_action(act, call)
        for index in range(len(self._layers)):
            if index not in seen:
                raise LayerError(self._not_called(index))
        return [self._gather(seen[index]) for index in range(len(self._layers))], output

    def replace(self, call: Callable[[], Any], values: list[Values], on_reach: Callable[[], object]) -> Any:
        """Runs the forward pass `call` with other values in the layers' place; returns the output.

        `values` are, for each layer, what the layer is to take in or give out. `on_reach` is called when the first
        layer is reached. Raises LayerError if a layer was not reached, or reached more than once.
        """
        reached: set[tuple[int, torch.device]] = set()
        scattered = self._scatter(values)

        def act(index: int, value: Any) -> Any:
            device = self._tensors(index, value)[0].device
            if (index, device) in reached:
                raise LayerError(self._called_again(index))
            if not reached:
                on_reach()
            reached.add((index, device))
            return _like(value, scattered.get(device, scattered[None])[index])

        output = self._with_action(act, call)
        for index in range(len(self._layers)):
            if all(index != i for i, _ in reached):
                raise LayerError(self._not_called(index))
        return output

    def _with_action(self, act: Callable[[int, Any], Any], call: Callable[[], Any]) -> Any:
        self._act = act
        try:
            return call()
        finally:
            self._act = None

    def _respond(self, index: int, value: Any) -> Any:
        """Returns the action's value for a layer; None, which changes nothing, in other threads."""
        act = self._act
        if act is None or (self._device_ids is None and threading.get_ident() != self._thread):
            return None
        return act(index, value)

    def _tensors(self, index: int, value: Any) -> Values:
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        for position, v in enumerate(values):
            if not isinstance(v, Tensor) or (self._is_path and not _has_path(v)):
                where = f"element {position} of the {self.what}" if len(values) > 1 else f"the {self.what}"
                needs = "a path needs floating-point tensors with the examples as their first dimension"
                needs = needs if self._is_path else "a neuron is selected from tensors, or from a flat tuple of tensors"
                raise LayerError(
                    f"{where} of {self._name(index)} is {describe(v)}; {needs}. Name a layer inside of it, or the "
                    "other side of it (attribute_to_layer_input)"
                )
        if not values:
            raise LayerError(
                f"{self._name(index)} is called with keyword arguments only, which are not its {self.what} to a hook. "
                "Attribute the output of the layer before it"
            )
        return values

    def _gather(self, by_device: dict[torch.device, Values]) -> Values:
        if self._device_ids is None or len(by_device) == 1:
            return next(iter(by_device.values()))
        parts = [by_device[torch.device("cuda", i)] for i in self._device_ids if torch.device("cuda", i) in by_device]
        return tuple(torch.cat([v.to(parts[0][0].device) for v in column]) for column in zip(*parts, strict=True))

    def _scatter(self, values: list[Values]) -> dict[torch.device | None, list[Values]]:
        """Returns the values for each device; the key None stands for all devices that have no key."""
        if self._device_ids is None:
            return {None: values}
        return {part[0][0].device: part for part in scatter(values, self._device_ids)} | {None: values}

    def _name(self, index: int) -> str:
        return f"layer {type(self._layers[index]).__name__}" + (f" [{index}]" if len(self._layers) > 1 else "")

    def _not_called(self, index: int) -> str:
        return (
            f"{self._name(index)} was not reached: forward_func does not call this module for these inputs (it may be "
            "a part of another model, a copy, or inside a scripted or compiled one, or run by another thread)"
        )

    def _called_again(self, index: int) -> str:
        return (
            f"{self._name(index)} is called more than once in one forward pass, so there is no single path through "
            "it. Wrap each call in a module of its own (nn.Identity after it, say) and name those"
        )


def _has_path(value: Tensor) -> bool:
    return (value.is_floating_point() or value.is_complex()) and value.dim() > 0


def _like(value: Any, tensors: Values) -> Any:
    """Returns new tensors in the container of the old value."""
    if not isinstance(value, (tuple, list)):
        return tensors[0]
    is_named = hasattr(value, "_fields")
    return type(value)(*tensors) if is_named else type(value)(tensors)
