"""Checks of the model and its output, before anything is attributed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from igfast.diagnosis.result import Finding
from igfast.diagnosis.subject import PLACES, Subject
from igfast.errors import IgfastError
from igfast.interrupts import is_interrupt
from igfast.model.independence import distance
from igfast.model.modules import parts_behind
from igfast.model.probabilities import are_probabilities

_SAME = 1e-3  # of the largest output: rounding is below, dependence of rows above


def check_output(subject: Subject, output: object) -> Finding:
    """Returns whether the target picks one number for each example."""
    if not isinstance(output, Tensor):
        return Finding("output", "bad", f"The model returns a {type(output).__name__}, not a tensor: "
                       "igfast.select_output picks one part of it.", {})  # fmt: skip
    try:
        picked = subject.picked(output)
    except IgfastError as error:
        return Finding("output", "bad", f"{error}.", {})
    if not torch.isfinite(picked).all():
        which = int((~torch.isfinite(picked)).nonzero()[0])
        return Finding("output", "bad", f"The output of example {which} is {float(picked[which])}.", {"example": which})
    if len(picked) != subject.batch:
        text = (
            f"The output has {len(picked)} entries for {subject.batch} examples, so steps go through the model as a "
            "whole, and the delta is that of the totals."
        )
        return Finding("output", "look", text, {"entries": len(picked), "examples": subject.batch})
    return Finding("output", "good", "One number for each example.", {"entries": len(picked)})


def check_scale(output: Tensor) -> Finding:
    """Returns whether the output are probabilities or logits."""
    if output.dim() != 2 or output.shape[1] < 2:
        return Finding("scale", "skipped", f"The output, {tuple(output.shape)}, is not one number for each class.", {})
    total = float(output.double().sum(dim=1).mean())
    if are_probabilities(output):
        highest = float(output.max(dim=1).values.mean())
        text = "Probabilities: rows sum to one. They compare with other classes; logits are a class's own evidence."
        if highest > 0.999:
            text += f" They are saturated (the largest is {highest:.4f}), so many steps or logits serve better."
        return Finding("scale", "look" if highest > 0.999 else "good", text, {"sum": total, "largest": highest})
    text = f"No probabilities, as logits and other scores are: rows do not sum to one (mean sum {total:.3g})."
    return Finding("scale", "good", text, {"sum": total})


def check_mode(subject: Subject, output: object) -> Finding:
    """Returns whether parts of the model are in training mode, and the output is another one for that."""
    modules = [part for part in parts_behind(subject.model) if hasattr(part, "training")]  # not frozen TorchScript
    if not modules:
        return Finding("mode", "skipped", "The forward function shows no module.", {})
    training = [type(module).__name__ for module in modules if module.training]
    figures = {"modules": float(len(training))}
    matter = sorted({type(module).__name__ for module in modules if module.training and _changes_in_training(module)})
    if matter:
        return Finding("mode", "bad", f"{', '.join(matter)} in training mode: call model.eval().", figures)
    if not training:
        return Finding("mode", "good", "Evaluation mode.", figures)
    with _in_evaluation_mode(modules):
        evaluated = subject.output(subject.inputs)
    if not isinstance(output, Tensor) or not isinstance(evaluated, Tensor):
        return Finding("mode", "look", "Training mode: call model.eval(), unless you mean it.", figures)
    if distance(output, evaluated) > _SAME:
        return Finding("mode", "bad", "Training mode changes the output: call model.eval().", figures)
    return Finding("mode", "good", "Training mode, which does not change the output here.", figures)


def _changes_in_training(module: nn.Module) -> bool:
    name = type(module).__name__
    return ("Dropout" in name and getattr(module, "p", 1) != 0) or "BatchNorm" in name or "RReLU" in name


@contextmanager
def _in_evaluation_mode(modules: list[nn.Module]) -> Iterator[None]:
    """Runs the block with modules in evaluation mode, and puts their modes back."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def check_integers(subject: Subject) -> Finding:
    """Returns which inputs hold integers, and the embedding layer to attribute instead."""
    if not subject.integers:
        return Finding("integers", "good", "All inputs are floating.", {})
    which, embeddings = subject.integers[0], subject.embeddings
    if not embeddings:
        text = (
            f"inputs[{which}] holds integers, and the model shows no embedding layer. Path points are floating: right "
            "for pixels and counts, wrong for ids."
        )
        return Finding("integers", "look", text, {"input": which})
    places = [_place_of(name) for name in embeddings]
    place = places[0] if len(places) == 1 else f"[{', '.join(places)}]"
    text = f"inputs[{which}] holds integers: attribute the embedding, LayerIntegratedGradients(model, {place})."
    return Finding("integers", "look", text, {"input": which})


def _place_of(name: str) -> str:
    is_path = all(part.isidentifier() for part in name.split(".") if name)
    return f"model.{name}".rstrip(".") if is_path else f"model.get_submodule({name!r})"


def check_rows(subject: Subject, output: Tensor) -> Finding:
    """Returns whether an example's output depends on the others in its batch."""
    if subject.batch < 2 or output.dim() == 0 or output.shape[0] != subject.batch:
        return Finding("rows", "skipped", "It takes two examples with an output each.", {})
    one = subject.first()
    try:
        alone = one.output(one.inputs)
    except Exception as error:  # a model may raise anything for one example alone
        if is_interrupt(error):
            raise
        text = f"The model does not take one example alone ({type(error).__name__}), so examples depend on each other."
        return Finding("rows", "look", text, {})
    if alone.dim() == output.dim() - 1:  # the model drops the dimension of a single example
        alone = alone.unsqueeze(0)
    if alone.shape != output[:1].shape:
        return Finding("rows", "look", f"One example alone gives an output {tuple(alone.shape)}.", {})
    change = distance(output, torch.cat([alone, output[1:]]))
    if change <= (_SAME if output.dtype in (torch.float32, torch.float64) else 50 * _SAME):
        return Finding("rows", "good", "Examples do not depend on each other.", {"difference": change})
    text = (
        f"An example's output changes by {change:.1%} when it is alone in its batch: examples depend on each other, "
        "or the model is random. igfast then sends whole steps through it."
    )
    return Finding("rows", "look", text, {"difference": change})


def check_gradient(subject: Subject) -> Finding:
    """Returns whether a gradient reaches the inputs, at the input and half-way to the baseline."""
    if subject.integers:
        return Finding("gradient", "skipped", "Integers have no gradient.", {})
    norms = []
    for alpha in (1.0, 0.5):
        found = subject.gradients(alpha)
        if found is None:
            text = "The output has no graph to the inputs: look for .detach() or torch.no_grad() in the model."
            return Finding("gradient", "bad", text, {})
        norms.append(found[1])
    odd = [index for index in range(len(subject.inputs)) if not all(math.isfinite(norm[index]) for norm in norms)]
    if odd:
        text = f"The gradient to inputs[{odd[0]}] is NaN or infinite, at the input or half-way to the baseline."
        return Finding("gradient", "bad", text, {})
    dead = [index for index in range(len(subject.inputs)) if not any(norm[index] for norm in norms)]
    figures = {f"inputs[{i}]": norm for i, norm in enumerate(norms[0])}
    if dead:
        elsewhere = [found[1] for alpha in PLACES if (found := subject.gradients(alpha)) is not None]
        if all(any(norm[index] for norm in elsewhere) for index in dead):
            text = f"The gradient to inputs[{dead[0]}] is zero at the input and half-way, and not all along the path."
            return Finding("gradient", "look", text, figures)
        text = f"No gradient reaches inputs[{dead[0]}], wherever on the path: its attributions will be zero."
        return Finding("gradient", "bad", text, figures)
    return Finding("gradient", "good", f"It reaches every input (norm {min(norms[0]):.2g}).", figures)
