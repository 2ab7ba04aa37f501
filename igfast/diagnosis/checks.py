"""Runs the checks one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from igfast.diagnosis import axioms, preconditions
from igfast.diagnosis.completeness import along_path, check_completeness, check_saturation
from igfast.diagnosis.result import Diagnosis, Finding
from igfast.diagnosis.subject import Subject
from igfast.errors import ArgumentError
from igfast.interrupts import is_interrupt
from igfast.model.state import buffers_restored
from igfast.rng import random_state_kept

_AXIOMS: dict[str, Callable[[Subject, int], Finding]] = {
    "sensitivity": axioms.check_sensitivity,
    "dummy": axioms.check_dummy,
    "invariance": axioms.check_invariance,
    "linearity": axioms.check_linearity,
    "symmetry": axioms.check_symmetry,
}


def diagnose(
    model: Callable[..., Any],
    inputs: Any,
    target: Any = None,
    baselines: Any = None,
    additional_forward_args: Any = None,
    *,
    n_steps: int = 50,
    max_steps: int = 800,
) -> Diagnosis:
    """Checks whether attributions of a model can be believed: its output, completeness, and the axioms, with figures.

    Tells whether the target picks one number for each example, whether the output are probabilities or logits, whether
    the model is in training mode, whether a gradient reaches the inputs, which embedding layer to attribute where
    inputs are integers, and whether examples depend on each other. Then compares the delta with the change of F, finds
    a number of steps that would do, and checks sensitivity, invariance under an equivalent network, linearity and
    symmetry on the first example.

    Args:
        model: the model or any function of the inputs.
        inputs: a tensor or a tuple of tensors, (batch, *features) each, or arrays, as `explain` takes them. Two
            examples show more than one.
        target: as in `igfast.IntegratedGradients.attribute`.
        baselines: for each input a number or a tensor, as in `igfast.IntegratedGradients.attribute`.
        additional_forward_args: as in `igfast.IntegratedGradients.attribute`.
        n_steps: points along the path.
        max_steps: where the search for a number of steps that would do ends.

    Returns:
        An `igfast.Diagnosis`.

    Raises:
        ArgumentTypeError: `model` is not callable.
        ArgumentError: `n_steps` is below 2, or `max_steps` below `n_steps`.
        InputError, InputTypeError, BaselineError: as in `igfast.IntegratedGradients.attribute`.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, sections 2 and 4; the authors' "how to" (2018).

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).eval()
        >>> diagnosis = igfast.diagnose(model, torch.rand(2, 3), target=1)
        >>> diagnosis["completeness"].verdict, diagnosis.good
        ('good', True)
    """
    if n_steps < 2 or max_steps < n_steps:
        raise ArgumentError(f"n_steps must be at least 2 and max_steps at least n_steps; got {n_steps} and {max_steps}")
    subject = Subject.of(model, inputs, target, baselines, additional_forward_args)
    with random_state_kept(subject.inputs[0].device), buffers_restored(model):
        return _diagnosed(subject, n_steps, max_steps)


def _diagnosed(subject: Subject, n_steps: int, max_steps: int) -> Diagnosis:
    out = subject.output(subject.inputs)
    findings = [
        preconditions.check_output(subject, out),
        preconditions.check_mode(subject, out),
        preconditions.check_integers(subject),
    ]
    if any(finding.verdict == "bad" for finding in findings) or not isinstance(out, Tensor):
        return Diagnosis(tuple(findings))
    findings += [
        preconditions.check_scale(out),
        preconditions.check_rows(subject, out),
        preconditions.check_gradient(subject),
    ]
    if findings[-1].verdict == "bad":
        return Diagnosis(tuple(findings))
    findings.append(check_completeness(subject, n_steps, max_steps))
    why = _why_not_alone(subject, findings)
    if why:
        findings += [Finding(name, "skipped", f"Not where {why}.", {}) for name in ("saturation", *_AXIOMS)]
        return Diagnosis(tuple(findings))
    alphas, values, gradients = along_path(subject)
    findings.append(check_saturation(values))
    with torch.no_grad():
        findings += [_tried(name, subject, n_steps) for name in _AXIOMS]
    return Diagnosis(tuple(findings), tuple(alphas), tuple(values), tuple(gradients))


def _tried(name: str, subject: Subject, n_steps: int) -> Finding:
    """Returns what an axiom's check finds, or that the model does not take the check's inputs."""
    try:
        return _AXIOMS[name](subject, n_steps)
    except Exception as error:  # a model may raise anything for other inputs, or for more rows
        if is_interrupt(error):
            raise
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return Finding(name, "skipped", f"The model does not take the check's inputs ({said}).", {})


def _why_not_alone(subject: Subject, findings: list[Finding]) -> str:
    """Returns why the remaining checks, of the first example alone, do not apply; empty if they do."""
    if subject.integers:
        return "inputs are integers"
    if any(x.is_complex() for x in subject.inputs):
        return "inputs are complex"
    verdicts = {finding.check: finding.verdict for finding in findings}
    return "examples depend on each other" if "look" in (verdicts["output"], verdicts["rows"]) else ""
