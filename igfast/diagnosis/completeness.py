"""Checks of completeness, and of saturation along the path."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from igfast.diagnosis.result import Finding
from igfast.diagnosis.subject import PLACES, Subject
from igfast.explanation.explain import flattened
from igfast.run.attributions import convergence_delta

_SHARE = 0.05  # of the change of F that the delta may be, as the authors' how-to has it
_SATURATED = 0.8  # of the change of F, within the first fifth of the path
_ROUNDING = 16 * torch.finfo(torch.float32).eps  # of the largest F: a smaller change is none


def check_completeness(subject: Subject, n_steps: int, max_steps: int) -> Finding:
    """Returns whether attributions sum to the change of F, and otherwise how many steps would do.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, Proposition 1; the share of 5 % is that of the authors'
        "how to" (2018).
    """
    share = _share(subject, n_steps)
    figures = {"n_steps": float(n_steps), "share": share}
    if share <= _SHARE:
        text = f"The delta is {share:.1%} of the change of F at {n_steps} steps."
        return Finding("completeness", "good", text, figures)
    enough, at_enough = n_steps, share
    while at_enough > _SHARE and 2 * enough <= max_steps:
        enough *= 2
        at_enough = _share(subject, enough)
    if at_enough <= _SHARE:
        text = f"The delta is {share:.1%} of the change of F at {n_steps} steps; {enough} steps do ({at_enough:.1%})."
        return Finding("completeness", "look", text, {**figures, "enough": float(enough)})
    text = f"The delta is {share:.1%} of the change of F at {n_steps} steps, and still {at_enough:.1%} at {enough}."
    return Finding("completeness", "bad", text, {**figures, "enough": float("nan")})


def along_path(subject: Subject) -> tuple[list[float], list[float], list[float]]:
    """Returns places on the path of the first example, F there, and the norm of the gradient there."""
    one = subject.first()
    values, norms = [], []
    for alpha in PLACES:
        found = one.gradients(alpha)
        if found is not None:  # as `check_gradient` has made sure
            values.append(found[0])
            norms.append(math.hypot(*found[1]))
    return PLACES, values, norms


def check_saturation(values: list[float]) -> Finding:
    """Returns whether F has nearly all of its change on the first fifth of the path.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 2.1.
    """
    change = values[-1] - values[0]
    if not all(map(math.isfinite, (values[0], values[-1], values[len(values) // 5]))):
        text = "F is infinite or NaN at the baseline, or early on the path: attributions will not sum to its change."
        return Finding("saturation", "look", text, {"change": change})
    if abs(change) <= _ROUNDING * max(map(abs, values)):
        text = "F is the same for input and baseline, so attributions sum to zero."
        return Finding("saturation", "look", text, {"change": 0.0})
    early = (values[len(values) // 5] - values[0]) / change
    figures = {"change": change, "early": early}
    text = f"{early:.0%} of the change of F happens on the first fifth of the path"
    if early > _SATURATED:
        return Finding("saturation", "look", f"{text}: the input's own gradient says little.", figures)
    return Finding("saturation", "good", f"{text}.", figures)


def _half_way(subject: Subject) -> tuple[Tensor, ...]:
    return tuple((x + b) / 2 for x, b in zip(subject.inputs, subject.baselines, strict=True))


def _share(subject: Subject, n_steps: int) -> float:
    """Returns the largest |delta| over |F(x) - F(x')| of the examples."""
    given: dict[str, Any] = {
        "inputs": subject.inputs,
        "baselines": subject.baselines,
        "target": subject.target,
        "additional_forward_args": subject.args or None,
    }
    attributions = subject.explainer.attribute(**given, n_steps=n_steps)
    ends = [subject.picked(subject.output(side)) for side in (subject.inputs, subject.baselines)]
    deltas = convergence_delta(tuple(flattened(attributions)), ends[0], ends[1]).double()
    changes: Tensor = (ends[0].double() - ends[1].double()).abs()
    changes = changes if changes.shape == deltas.shape else changes.sum().reshape(1)
    eps = torch.finfo(ends[0].dtype).eps
    between = [] if subject.integers else [subject.picked(subject.output(_half_way(subject)))]
    largest = float(torch.cat([*ends, *between]).abs().max())
    rounding = (1e3 if eps <= torch.finfo(torch.float32).eps else 16) * eps * largest
    return float((deltas.abs() / changes.clamp_min(max(rounding, 1e-30))).max())
