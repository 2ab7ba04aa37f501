import numpy as np
import pytest
from captum.attr._utils.approximation_methods import approximation_parameters

import igfast
from igfast.run.quadrature import quadrature_rule
from tests import oracle

RULES = [(m, n) for m in igfast.METHODS for n in (1, 2, 3, 7, 50, 301) if n > 1 or "trapezoid" not in m]


@pytest.mark.parametrize(("method", "n_steps"), RULES)
def test_equals_definition(method, n_steps):
    rule = quadrature_rule(method, n_steps)
    nodes, weights = oracle.rule(method, n_steps)
    assert rule.nodes.dtype == rule.weights.dtype == np.float64
    np.testing.assert_allclose(rule.nodes, nodes, rtol=0, atol=2e-16)
    np.testing.assert_allclose(rule.weights, weights, rtol=0, atol=2e-16)
    assert rule.nodes.min() >= 0
    assert rule.nodes.max() <= 1


@pytest.mark.parametrize("method", [m for m in igfast.METHODS if m != "trapezoid"])
def test_equals_captum_up_to_its_float32(method):
    step_sizes, alphas = approximation_parameters(method)
    rule = quadrature_rule(method, 20)
    np.testing.assert_allclose(rule.nodes, alphas(20), rtol=0, atol=1e-7)
    np.testing.assert_allclose(rule.weights, step_sizes(20), rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", igfast.METHODS)
def test_weights_sum_to_one_but_for_captums_trapezoid(method):
    total = quadrature_rule(method, 50).weights.sum()
    assert total == pytest.approx(0.98 if method == "riemann_trapezoid" else 1.0, abs=1e-14)


def test_trapezoid_converges_and_captums_does_not():
    def error(method):
        rule = quadrature_rule(method, 200)
        return abs((rule.weights * np.exp(rule.nodes)).sum() - (np.e - 1))

    assert error("trapezoid") < 1e-5
    assert error("riemann_trapezoid") > 1e-3


def test_gausslegendre_is_exact_for_polynomials():
    rule = quadrature_rule("gausslegendre", 4)
    assert (rule.weights * rule.nodes**7).sum() == pytest.approx(1 / 8, abs=1e-15)


@pytest.mark.parametrize("method", ["trapezoid", "riemann_trapezoid", "riemann_left", "riemann_right"])
def test_ends_are_exact(method):
    nodes = quadrature_rule(method, 37).nodes
    assert (nodes[0] == 0.0) == (method != "riemann_right")
    assert (nodes[-1] == 1.0) == (method != "riemann_left")


def test_gausslegendre_is_made_once_and_cannot_be_changed():
    rule = quadrature_rule("gausslegendre", 11)
    assert quadrature_rule("gausslegendre", 11) is rule
    for array in (rule.nodes, rule.weights):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.0
