"""What is diagnosed: a model with inputs, baselines and target, ready to be called."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from igfast.attr import IntegratedGradients, LayerIntegratedGradients
from igfast.errors import ArgumentTypeError, InputError
from igfast.explanation.explain import tensors_of
from igfast.model.forward import copied
from igfast.model.hooks import hooked
from igfast.model.modules import modules_behind, parts_behind
from igfast.request.inputs import as_tuple, describe, one_for_each
from igfast.request.model_inputs import AtLayer, parse_model_inputs
from igfast.request.several_baselines import Baselines
from igfast.request.target import parse_target

PLACES: list[float] = torch.linspace(0, 1, 21).tolist()
"""Places on the path, at which F and its gradient are looked at."""


@dataclass(frozen=True)
class Subject:
    """A model and what it is asked.

    Attributes:
        model: the forward function.
        inputs: (batch, *features) each.
        baselines: of the inputs' shapes.
        target: as `attribute` takes it.
        args: the additional forward arguments.
    """

    model: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    target: Any
    args: tuple[Any, ...]

    @classmethod
    def of(cls, model: Any, inputs: Any, target: Any, baselines: Any, additional_forward_args: Any) -> Subject:
        """Returns a subject with checked inputs and baselines; raises as `attribute`."""
        if not callable(model):
            raise ArgumentTypeError(f"model must be callable; got {describe(model)}")
        if isinstance(baselines, (Baselines, AtLayer)):
            raise ArgumentTypeError(
                f"baselines must be one for each input, numbers or tensors, to be diagnosed; got {describe(baselines)}"
            )
        args = as_tuple(additional_forward_args)
        asked = tensors_of(model, {"inputs": inputs, "target": target, "baselines": baselines, "args": args})
        given = parse_model_inputs(asked["inputs"], one_for_each(asked["baselines"], len(as_tuple(asked["inputs"]))))
        if given.batch == 0:
            raise InputError("inputs must hold at least one example; got none")
        return cls(model, given.x, given.baselines, asked["target"], asked["args"])

    @property
    def batch(self) -> int:
        """The number of examples."""
        return int(self.inputs[0].shape[0])

    @property
    def integers(self) -> tuple[int, ...]:
        """The positions of inputs that hold integers."""
        return tuple(i for i, x in enumerate(self.inputs) if not (x.is_floating_point() or x.is_complex()))

    @property
    def embeddings(self) -> list[str]:
        """The names of the embedding layers that the inputs reach; else the first of all, or nothing."""
        named = [
            (name, part)
            for module in modules_behind(self.model)
            for name, part in module.named_modules()
            if isinstance(part, (nn.Embedding, nn.EmbeddingBag))
        ]
        moved = {id(layer) for layer in self.moved_embeddings()}
        return [name for name, part in named if id(part) in moved] or [name for name, _ in named[:1]]

    @property
    def explainer(self) -> Any:
        """The explainer: of the inputs, or where inputs are integers, of the embedding layers that they reach."""
        layers = self.moved_embeddings() if self.integers else []
        if not layers:
            return IntegratedGradients(self.model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Multiple layers provided")  # embeddings do not feed each other
            return LayerIntegratedGradients(self.model, layers if len(layers) > 1 else layers[0])

    def moved_embeddings(self) -> list[nn.Module]:
        """Returns the embedding layers whose values differ between inputs and baselines; those of positions do not."""
        layers = [part for part in parts_behind(self.model) if isinstance(part, (nn.Embedding, nn.EmbeddingBag))]
        seen: dict[int, list[Tensor]] = {id(layer): [] for layer in layers}

        def keep(part: nn.Module, _: Any, value: Tensor) -> None:
            seen[id(part)].append(value)

        with hooked(layers, [keep] * len(layers)):
            for side in (self.inputs, self.baselines):
                self.output(side)
        return [layer for layer in layers if len(seen[id(layer)]) == 2 and not torch.equal(*seen[id(layer)])]

    def output(self, inputs: tuple[Tensor, ...]) -> Any:
        """Returns the model's output, without a graph."""
        with torch.no_grad():
            return self.model(*map(copied, (*inputs, *self.args)))

    def gradients(self, alpha: float) -> tuple[float, list[float]] | None:
        """Returns F, summed over the examples, and the norm of its gradient to each input at a place of the paths.

        None where the output has no graph to the inputs.
        """
        with torch.enable_grad():
            points = tuple(
                (b + alpha * (x - b)).detach().requires_grad_()
                for x, b in zip(self.inputs, self.baselines, strict=True)
            )
            output = self.model(*(point.clone() for point in points), *map(copied, self.args))
            if not isinstance(output, Tensor) or not output.requires_grad:
                return None
            value = self.picked(output).sum()
            grads = torch.autograd.grad(value, points, allow_unused=True)
        return float(value.detach()), [0.0 if grad is None else float(grad.double().norm()) for grad in grads]

    def picked(self, output: Any) -> Tensor:
        """Returns the attributed number of each entry of an output, (entries,)."""
        target = parse_target(self.target)
        return target.select_of_step(target.with_entry(output) if self.batch == 1 else output)

    def first(self) -> Subject:
        """Returns the subject with its first example alone; arguments with one entry for each example likewise."""
        target = self.target
        is_for_each = isinstance(target, list) or (isinstance(target, Tensor) and target.dim() == 1)
        if is_for_each and len(target) == self.batch:
            target = target[:1]
        args = tuple(
            arg[:1] if isinstance(arg, Tensor) and arg.dim() > 0 and arg.shape[0] == self.batch else arg
            for arg in self.args
        )
        inputs, baselines = (tuple(tensor[:1] for tensor in side) for side in (self.inputs, self.baselines))
        return Subject(self.model, inputs, baselines, target, args)
