"""The error that is estimated for a fixed number of steps, from two halves of them."""

import math

import numpy as np
import pytest
import torch

import igfast
from igfast.run.quadrature import halves_of, quadrature_rule
from tests.run.test_tolerance import X, errors, fine, relu_net

METHODS = ("trapezoid", "riemann_middle")


def reported(net, x, method, n_steps, **options):
    explainer = igfast.IntegratedGradients(net)
    return explainer.attribute(x, method=method, n_steps=n_steps, return_report=True, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_steps", [40, 41, 50, 203])
def test_tells_the_error_of_relu_networks(method, n_steps):
    net = relu_net()
    found, report = reported(net, X, method, n_steps, target=1)
    estimates, real = np.array(report.convergence.estimate), np.array(errors(found, fine(net, X, target=1)))
    assert 0.7 < np.exp(np.log(estimates / real).mean()) < 1.6
    assert np.mean(real <= np.array(report.convergence.bound)) >= 0.8  # few features: their errors scatter most
    assert report.convergence.evaluations == (n_steps,) * len(X)
    assert report.convergence.tolerance is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_steps", [8, 9, 16, 33, 50])
def test_is_not_below_the_error_of_smooth_functions(method, n_steps):
    x = X[:4] / 4
    found, report = reported(lambda x: x.exp().sum(dim=1), x, method, n_steps)
    real = errors(found, x.exp() - 1)
    for estimate, error in zip(report.convergence.estimate, real, strict=True):
        assert error < estimate < 60 * error


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_steps", [3, 4, 5, 8, 50, 51])
def test_halves_differ_by_the_same_for_every_jump(method, n_steps):
    weights, nodes = halves_of(method, n_steps), quadrature_rule(method, n_steps).nodes
    sums = np.cumsum(weights)
    np.testing.assert_allclose(np.abs(sums[:-1]), nodes[1] - nodes[0])  # a jump from 1 to 0 after a node
    assert abs(sums[-1]) < 1e-12  # a constant


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_steps", [7, 8])
def test_tells_the_error_of_a_jump_anywhere(method, n_steps):
    jumps = torch.linspace(0.1, 0.9, 161, dtype=torch.float64)
    x = torch.ones(1, len(jumps), dtype=torch.float64)
    found, report = reported(lambda x: (x - jumps).relu().sum(dim=1), x, method, n_steps)
    assert report.convergence.estimate == pytest.approx(errors(found, 1 - jumps[None]), rel=0.1)
    for jump in jumps.tolist():
        found, report = reported(lambda x, jump=jump: (x - jump).relu().sum(dim=1), x[:, :1], method, n_steps)
        assert errors(found, torch.tensor([[1 - jump]])) <= [
            1.02 * found.item() / (1 - jump) * report.convergence.bound[0]
        ]


def test_two_halves_by_hand():
    def kinked(x):  # the gradient is 0 up to alpha = 0.3, and 1 from there
        return (x - 0.3).relu().sum(dim=1)

    x = torch.ones(1, 1, dtype=torch.float64)
    _, report = reported(kinked, x, "trapezoid", 5)  # nodes 0, 1/4, 1/2, 3/4, 1: trapezoids 3/4, midpoints 1/2
    assert report.convergence.estimate == pytest.approx((0.25 / 0.625 / math.sqrt(12),))
    assert report.convergence.bound == pytest.approx((0.125 / 0.625,))
    _, report = reported(kinked, x, "riemann_middle", 3)  # nodes 1/6, 1/2, 5/6: trapezoid 1/3, midpoint 2/3
    assert report.convergence.estimate == pytest.approx((1 / 3 / (2 / 3) / math.sqrt(12),))


def test_one_target_that_is_not_finite_is_not_hidden():
    def model(x):
        return torch.stack([x.sin().sum(dim=1), (x * torch.nan).sum(dim=1)], dim=1)

    with pytest.warns(UserWarning, match="NaN or infinite"):
        _, report = igfast.IntegratedGradients(model).attribute_targets(
            X, [0, 1], method="trapezoid", n_steps=5, return_report=True
        )
    assert report.convergence.estimate == (math.inf,) * len(X)


def test_complex_inputs_and_inputs_without_features():
    def model(z, y):
        return (z.abs() ** 2).sum(dim=1) + y**3

    inputs = torch.complex(X, X.flip(1)), X[:, 0]
    _, report = reported(model, inputs, "trapezoid", 9)
    assert len(report.convergence.estimate) == len(X)
    assert 0 < max(report.convergence.estimate) < 0.1


def test_the_worst_of_several_targets():
    net = relu_net()
    explainer = igfast.IntegratedGradients(net)
    options = {"method": "trapezoid", "n_steps": 21, "return_report": True}
    _, report = explainer.attribute_targets(X, [0, 1, 2], **options)
    single = [explainer.attribute(X, target=target, **options)[1].convergence.estimate for target in range(3)]
    assert report.convergence.estimate == pytest.approx(tuple(map(max, zip(*single, strict=True))))


def test_without_multiplying_by_inputs():
    net = relu_net()
    explainer = igfast.IntegratedGradients(net, multiply_by_inputs=False)
    options = {"method": "trapezoid", "target": 1}
    found, report = explainer.attribute(X, n_steps=41, return_report=True, **options)
    real = errors(found, explainer.attribute(X, n_steps=2049, **options))
    assert 0.7 < np.exp(np.log(np.array(report.convergence.estimate) / real).mean()) < 1.6


def test_one_pass_over_few_examples_at_a_time(monkeypatch):
    _, report = reported(relu_net(), X, "trapezoid", 21, target=1)
    monkeypatch.setattr("igfast.run.steps._BYTES_AT_ONCE", 1)
    _, again = reported(relu_net(), X, "trapezoid", 21, target=1)
    assert again.convergence.estimate == pytest.approx(report.convergence.estimate)


def test_rows_that_belong_together_have_one():
    _, report = reported(lambda x: (x @ x.T).relu().sum().reshape(1), X, "trapezoid", 21)
    assert len(report.convergence.estimate) == 1


def test_layers_and_neurons_have_one():
    net = relu_net()
    options = {"method": "trapezoid", "n_steps": 21, "return_report": True}
    _, report = igfast.LayerIntegratedGradients(net, net[1]).attribute(X, target=1, **options)
    assert len(report.convergence.estimate) == len(X)
    _, report = igfast.NeuronIntegratedGradients(net, net[2]).attribute(X, 1, **options)
    assert len(report.convergence.estimate) == len(X)


@pytest.mark.parametrize(("method", "n_steps"), [("gausslegendre", 50), ("riemann_middle", 2), ("trapezoid", 2)])
def test_rules_without_halves_have_none(method, n_steps):
    _, report = reported(relu_net(), X, method, n_steps, target=1)
    assert report.convergence is None


def test_nothing_to_attribute():
    _, report = reported(relu_net(), X, "trapezoid", 5, target=1, baselines=X)
    assert report.convergence.estimate == (0.0,) * len(X)


def test_the_report_and_the_summary_say_it():
    _, report = reported(relu_net(), X, "trapezoid", 51, target=1)
    assert "converged" not in str(report)
    assert "error           about " in str(report)
    explanation = igfast.IntegratedGradients(relu_net()).explain(X, target=1, method="trapezoid", n_steps=51)
    again = igfast.Explanation.from_json(explanation.to_json())
    assert again.report.convergence == explanation.report.convergence
    assert "+- " in explanation.summary()
    assert "tolerance" not in explanation.summary()


def test_inputs_without_a_single_number():
    _, report = reported(lambda x: x.sum(dim=1), torch.ones(2, 0), "trapezoid", 5)
    assert report.convergence.estimate == (0.0, 0.0)
