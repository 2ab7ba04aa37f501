"""Checks of the axioms of Integrated Gradients on the user's own model, with figures.

Source of all: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, sections 2 and 4.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from igfast.attr import IntegratedGradients
from igfast.diagnosis.result import Finding
from igfast.diagnosis.subject import Subject
from igfast.interrupts import is_interrupt
from igfast.model.forward import copied

_FEATURES = 8  # that are tried, the ones that differ most from the baseline
_CLOSE = 1e-3  # relative difference that rounding and quadrature may leave
_SAME_OUTPUT = 1e-4  # of the largest output, for an equivalent network


def check_sensitivity(subject: Subject, n_steps: int) -> Finding:
    """Returns whether a feature that alone changes the output gets that change as its attribution (section 2.1)."""
    x, baseline = subject.inputs[0][0], subject.baselines[0][0]
    places = (x - baseline).abs().flatten().topk(min(_FEATURES, x.numel())).indices
    points = baseline.flatten().repeat(len(places), 1)
    points[range(len(places)), places] = x.flatten()[places]
    changed = points.reshape(-1, *x.shape)
    one = subject.first()
    forward = _of_first_input(one)
    attributions = IntegratedGradients(forward).attribute(changed, baseline.unsqueeze(0), n_steps=n_steps)
    with torch.no_grad():
        changes = (forward(changed) - forward(baseline.unsqueeze(0))).double()
    given = attributions.flatten(1)[range(len(places)), places].double()
    error = float((given - changes).abs().max() / changes.abs().max().clamp_min(1e-30))
    n_changing = int((changes != 0).sum())
    figures = {"features": float(n_changing), "largest_change": float(changes.abs().max()), "error": error}
    if not changes.any():
        return Finding("sensitivity", "skipped", "No feature that was tried changes the output alone.", figures)
    text = f"{n_changing} features that alone change F got that change, up to {error:.1%}."
    return Finding("sensitivity", "good" if error < 50 * _CLOSE else "look", text, figures)


def check_dummy(subject: Subject, n_steps: int) -> Finding:
    """Returns whether features of the model that the output ignores get none (section 2.1).

    Tried are the features with the smallest attributions that differ from the baseline. A feature counts as ignored if
    the output stays exactly the same when that feature alone goes back to the baseline, at several places of the path.
    """
    one = subject.first()
    forward = _of_first_input(one)
    x, baseline = one.inputs[0], one.baselines[0]
    attributions = _attributed(one, forward, n_steps).flatten()
    differs = (x != baseline).flatten()
    candidates = attributions.abs().masked_fill(~differs, torch.inf).argsort()[: min(_FEATURES, int(differs.sum()))]
    ignored = [place for place in candidates.tolist() if _is_ignored(forward, x, baseline, place)]
    if not ignored:
        return Finding("dummy", "skipped", "The output ignores none of the features that were tried.", {"features": 0})
    largest = float(attributions[ignored].abs().max())
    figures = {"features": float(len(ignored)), "largest": largest}
    text = f"{len(ignored)} features that the output ignores get at most {largest:g}."
    return Finding("dummy", "good" if largest <= _CLOSE * float(attributions.abs().max()) else "look", text, figures)


def _is_ignored(forward: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor, place: int) -> bool:
    """Returns whether the output at places of the path is the same without one feature."""
    alphas = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=x.dtype, device=x.device).view(-1, *(1,) * (x.dim() - 1))
    points = baseline + alphas * (x - baseline)
    without = points.flatten(1).clone()
    without[:, place] = baseline.flatten()[place]
    with torch.no_grad():
        return torch.equal(forward(points), forward(without.view_as(points)))


def check_linearity(subject: Subject, n_steps: int) -> Finding:
    """Returns whether a combination of two outputs gets that combination of their attributions (section 2.3)."""
    one = subject.first()
    forward = _of_first_input(one)
    combined = _attributed(one, lambda x: 2 * forward(x) - 3 * forward(x).square(), n_steps)
    apart = 2 * _attributed(one, forward, n_steps) - 3 * _attributed(one, lambda x: forward(x).square(), n_steps)
    error = _relative(combined, apart)
    text = f"Attributions to 2 F - 3 F^2 differ from those combined by {error:.1g}."
    return Finding("linearity", "good" if error < _CLOSE else "look", text, {"error": error})


def check_symmetry(subject: Subject, n_steps: int) -> Finding:
    """Returns whether two features that play the same part, with the same values, get the same (section 4)."""
    one = subject.first()
    if one.inputs[0].numel() < 2:
        return Finding("symmetry", "skipped", "It takes two features.", {})
    order = (one.inputs[0] - one.baselines[0]).abs().flatten().argsort(descending=True)
    first, second = int(order[0]), int(order[1])
    forward = _of_first_input(one)

    def swapped(x: Tensor) -> Tensor:
        index = torch.arange(x[0].numel(), device=x.device)
        index[first], index[second] = second, first
        return x.flatten(1)[:, index].reshape(x.shape)

    x, baseline = (t.flatten(1).clone() for t in (one.inputs[0], one.baselines[0]))
    x[:, second], baseline[:, second] = x[:, first], baseline[:, first]
    shape = one.inputs[0].shape
    attributions = IntegratedGradients(lambda p: forward(p) + forward(swapped(p))).attribute(
        x.reshape(shape), baseline.reshape(shape), n_steps=n_steps
    )
    both = attributions.flatten()[[first, second]].double()
    error = float((both[0] - both[1]).abs() / attributions.abs().max().clamp_min(1e-30))
    text = f"Two features with the same part and values got attributions that differ by {error:.1g} of the largest."
    return Finding("symmetry", "good" if error < _CLOSE else "look", text, {"error": error})


def check_invariance(subject: Subject, n_steps: int) -> Finding:
    """Returns whether an equivalent network gets the same attributions (section 2.2)."""
    if not isinstance(subject.model, nn.Module) or getattr(subject.model, "training", False):
        return Finding("invariance", "skipped", "It takes a module in evaluation mode.", {})
    one = subject.first()
    try:
        equivalent, n_changed = _simplified(subject.model)
    except Exception as failure:  # copying and folding run code of the user's
        if is_interrupt(failure):
            raise
        text = f"The model cannot be copied to fold its layers ({type(failure).__name__})."
        return Finding("invariance", "skipped", text, {})
    try:
        other = Subject(equivalent, one.inputs, one.baselines, one.target, one.args)
        before, after = one.output(one.inputs), other.output(other.inputs)
        apart = float((before - after).abs().max() / before.abs().max().clamp_min(1e-30))
    except Exception as failure:  # layers that follow each other by name need not follow each other in the model
        if is_interrupt(failure):
            raise
        apart, n_changed = float("inf"), 0
    if not n_changed and apart == 0:
        return Finding("invariance", "skipped", "No batch norm to fold and no linear layers to merge.", {})
    if not apart < _SAME_OUTPUT:
        return Finding("invariance", "skipped", "Folding layers changed the output: they do not follow each other.", {})
    error = _relative(*(_attributed(each, _of_first_input(each), n_steps) for each in (other, one)))
    figures = {"layers": float(n_changed), "error": error}
    text = f"With {n_changed} layers folded or merged, attributions differ by {error:.1g}."
    return Finding("invariance", "good" if error < 10 * _CLOSE else "look", text, figures)


def _of_first_input(one: Subject) -> Callable[[Tensor], Tensor]:
    """Returns F as a function of the first input alone, (rows, *features) to (rows,)."""

    def forward(x: Tensor) -> Tensor:
        def repeated(value: Any) -> Any:
            is_row = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == 1
            return value.expand(x.shape[0], *value.shape[1:]) if is_row else value

        output = one.model(x.clone(), *map(copied, map(repeated, (*one.inputs[1:], *one.args))))
        target = one.target
        if isinstance(target, Tensor):
            target = int(target.reshape(-1)[0])
        elif isinstance(target, list):
            target = target[0]
        return Subject(one.model, (x,), (), target, ()).picked(output)

    return forward


def _attributed(one: Subject, forward: Callable[[Tensor], Tensor], n_steps: int) -> Tensor:
    """Returns the attributions of a function of the first input."""
    attributions: Tensor = IntegratedGradients(forward).attribute(one.inputs[0], one.baselines[0], n_steps=n_steps)
    return attributions.double()


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def _simplified(model: nn.Module) -> tuple[nn.Module, int]:
    """Returns a copy with batch norms folded and linear layers merged where they follow each other, and how many."""
    simple = copy.deepcopy(model)
    n_changed = 0
    for parent in list(simple.modules()):
        names = list(parent._modules)
        for name, following in pairwise(names):
            first, second = parent._modules[name], parent._modules[following]
            merged = _merged(first, second, isinstance(parent, nn.Sequential))
            if merged is not None:
                parent._modules[name], parent._modules[following] = nn.Identity(), merged
                n_changed += 1
    return simple, n_changed


def _merged(first: nn.Module | None, second: nn.Module | None, in_sequence: bool) -> nn.Module | None:
    if isinstance(first, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and isinstance(second, nn.modules.batchnorm._BatchNorm):
        return fuse_conv_bn_eval(first, second) if second.running_mean is not None else None
    if isinstance(first, nn.Linear) and isinstance(second, nn.BatchNorm1d) and second.running_mean is not None:
        return fuse_linear_bn_eval(first, second)
    if in_sequence and isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
        merged = nn.Linear(first.in_features, second.out_features).to(first.weight)
        with torch.no_grad():
            merged.weight.copy_(second.weight @ first.weight)
            bias = torch.zeros(second.out_features).to(first.weight) if second.bias is None else second.bias
            merged.bias.copy_(bias if first.bias is None else bias + second.weight @ first.bias)
        return merged
    return None
