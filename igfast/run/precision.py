"""Reads how precise a call is asked to be: a number of steps, or a tolerance."""

from __future__ import annotations

from typing import Any

from igfast.errors import ArgumentError
from igfast.request.several_baselines import Baselines
from igfast.run.over_baselines import OverBaselines
from igfast.run.quadrature import halves_of, quadrature_rule
from igfast.run.steps import FixedSteps, Quadrature
from igfast.run.tolerance import ToTolerance

MAX_STEPS = 2000
_METHOD = "gausslegendre"


class _Default(int):
    """A number that the caller did not give."""


DEFAULT_STEPS = _Default(50)


def quadrature_of(
    method: str,
    n_steps: Any,
    tolerance: Any,
    max_steps: Any,
    correct_completeness: bool,
    multiplied: bool,
    baselines: Any = None,
    *,
    with_error: bool = False,
) -> Quadrature:
    """Returns how a call integrates.

    Args:
        method: as in `attribute`.
        n_steps: as in `attribute`.
        tolerance: as in `attribute`.
        max_steps: as in `attribute`.
        correct_completeness: as in `attribute`.
        multiplied: whether attributions are multiplied by (x - baseline).
        baselines: as in `attribute`.
        with_error: whether the error is to be estimated where a rule allows it.

    Raises ArgumentError and ArgumentTypeError for arguments that are not allowed, or not together.
    """
    if isinstance(baselines, Baselines):
        if tolerance is not None:
            raise ArgumentError("tolerance is for one baseline; with igfast.Baselines, pass n_steps")
        return OverBaselines(quadrature_rule(method, n_steps), baselines, multiplied)
    if tolerance is None:
        rule = quadrature_rule(method, n_steps)
        return FixedSteps(rule, halves_of(method, len(rule.nodes)) if with_error else None, multiplied)
    if n_steps is not DEFAULT_STEPS:
        raise ArgumentError(f"n_steps and tolerance exclude each other; got n_steps={n_steps}, tolerance={tolerance}")
    if method != _METHOD:
        raise ArgumentError(f"method cannot be chosen with tolerance, which places steps itself; got {method!r}")
    return ToTolerance(tolerance, max_steps, correct_completeness, multiplied)
