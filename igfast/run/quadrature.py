"""Makes quadrature rules on [0, 1]: where along the path gradients are taken and how much each counts.

All numbers are float64. Captum 0.9 casts its weights and its Riemann nodes to float32; the rules here are not rounded.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from igfast.errors import ArgumentError, ArgumentTypeError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """A quadrature rule: the integral of f over [0, 1] is about `sum(weights * f(nodes))`.

    Attributes:
        nodes: (n_steps,) float64 in [0, 1], ascending: the alphas.
        weights: (n_steps,) float64.
    """

    nodes: Array
    weights: Array


def _equal_weights(n: int) -> Array:
    return np.full(n, 1.0 / n)


def _halved_ends(weights: Array) -> Array:
    weights[[0, -1]] /= 2
    return weights


@functools.lru_cache(maxsize=32)
def _gausslegendre(n: int) -> Rule:
    """Returns a cached rule: its nodes, eigenvalues of an n x n matrix, take a quarter of a small model's call."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    rule = Rule(0.5 * (1.0 + nodes), 0.5 * weights)
    rule.nodes.flags.writeable = rule.weights.flags.writeable = False
    return rule


def _riemann_left(n: int) -> Rule:
    return Rule(np.arange(n) / n, _equal_weights(n))


def _riemann_right(n: int) -> Rule:
    return Rule(np.arange(1, n + 1) / n, _equal_weights(n))


def _riemann_middle(n: int) -> Rule:
    return Rule((np.arange(n) + 0.5) / n, _equal_weights(n))


def _riemann_trapezoid(n: int) -> Rule:
    return Rule(np.linspace(0.0, 1.0, n), _halved_ends(_equal_weights(n)))


def _trapezoid(n: int) -> Rule:
    return Rule(np.linspace(0.0, 1.0, n), _halved_ends(np.full(n, 1.0 / (n - 1))))


_RULES: dict[str, tuple[Callable[[int], Rule], int]] = {  # the rule and its least n_steps
    "riemann_left": (_riemann_left, 1),
    "riemann_right": (_riemann_right, 1),
    "riemann_middle": (_riemann_middle, 1),
    "riemann_trapezoid": (_riemann_trapezoid, 2),
    "gausslegendre": (_gausslegendre, 1),
    "trapezoid": (_trapezoid, 2),
}

METHODS = tuple(_RULES)


def quadrature_rule(method: str, n_steps: int) -> Rule:
    """Returns the rule that `method` names, with `n_steps` nodes in ascending order.

    Args:
        method: one of `METHODS`. `gausslegendre` is exact for polynomials of degree 2 n_steps - 1. The four Riemann
            rules are Captum's, kept for callers whose numbers depend on them. `riemann_trapezoid` has n_steps nodes
            from 0 to 1 but spaces its weights by 1 / n_steps. The sum is (n_steps - 1) / n_steps, so attributions are
            that much too small (2 % at 50 steps). `trapezoid` is the correct rule: its weights sum to 1.
        n_steps: number of nodes, at least 1, at least 2 for the two trapezoid rules.

    Raises:
        ArgumentError: unknown method, or n_steps too small.
        ArgumentTypeError: n_steps is not an integer.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, eq. 3 for the Riemann sum.
    """
    if not isinstance(method, str) or method not in _RULES:
        raise ArgumentError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    try:
        n = operator.index(n_steps)
    except TypeError:
        raise ArgumentTypeError(f"n_steps must be an integer; got {n_steps!r} ({type(n_steps).__name__})") from None
    make, fewest = _RULES[method]
    if n < fewest:
        raise ArgumentError(f"n_steps must be at least {fewest} for method {method!r}; got {n}")
    return make(n)


def halves_of(method: str, n_steps: int) -> Array | None:
    """Returns the weights of one rule less those of another, on two halves of the nodes of `quadrature_rule`.

    Trapezoids on every other node are compared with the midpoints between them, from the first node to the last one. On
    a smooth integrand, the difference D falls as fast as the whole rule's error, and exceeds it. Where the integrand
    jumps by J between two of the nodes, D is J / n. If the jump may be anywhere, the root of the error's mean square is
    D / sqrt(12), and the error is D / 2 at most. None for rules that have no such halves.
    """
    if method not in ("trapezoid", "riemann_middle") or n_steps < 3:
        return None
    return _halved_ends(np.resize([2.0, -2.0], n_steps)) / (n_steps - (method == "trapezoid"))
