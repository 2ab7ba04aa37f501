"""A tolerance is met, by example, whatever the chunks; what cannot be met is said."""

import warnings

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

import igfast
from igfast.request.inputs import parse_inputs
from igfast.run.path import accumulator
from igfast.run.tolerance import _sizes


def relu_net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).to(dtype)


X = 2 * torch.randn(16, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def errors(found, reference):
    return ((found - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).tolist()


def fine(net, x, **options):
    return igfast.IntegratedGradients(net).attribute(x, n_steps=2048, method="riemann_middle", **options)


def within(net, x, tolerance, **options):
    return igfast.IntegratedGradients(net).attribute(
        x, tolerance=tolerance, return_convergence_delta=True, return_report=True, **options
    )


@pytest.mark.parametrize("tolerance", [0.1, 0.05, 0.01, 0.003])
def test_is_met(tolerance):
    net = relu_net()
    reference = fine(net, X, target=1)
    found, delta, report = within(net, X, tolerance, target=1)
    convergence = report.convergence
    real = np.array(errors(found, reference))
    assert np.mean(real <= tolerance) >= 0.9
    assert real.max() <= 1.5 * tolerance
    assert np.mean(real <= np.array(convergence.bound)) >= 0.8
    assert all(convergence.converged)
    assert delta.abs().max() < 1e-12
    assert report.n_rows == sum(convergence.evaluations)
    assert convergence.tolerance == tolerance


def test_a_smooth_function_takes_nine_path_points():
    found, delta, report = within(lambda x: x.exp().sum(dim=1), X[:4] / 4, 0.05)
    assert report.convergence.evaluations == (9, 9, 9, 9)
    assert max(errors(found, (X[:4] / 4).exp() - 1)) < 0.01
    assert delta.abs().max() < 1e-12


def test_each_example_has_the_path_points_that_it_has_alone():
    net = relu_net()
    together, _, report = within(net, X, 0.01, target=1)
    for index in range(len(X)):
        alone, _, single = within(net, X[index : index + 1], 0.01, target=1)
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-10, atol=1e-12)
        assert single.convergence.evaluations == (report.convergence.evaluations[index],)
    assert max(report.convergence.evaluations) > 2 * min(report.convergence.evaluations)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_chunks_do_not_matter(size):
    net = relu_net()
    found, _, report = within(net, X, 0.02, target=1)
    other, _, of_size = within(net, X, 0.02, target=1, internal_batch_size=size)
    torch.testing.assert_close(other, found, rtol=1e-9, atol=1e-11)
    assert of_size.convergence.evaluations == report.convergence.evaluations
    assert max(of_size.chunks) <= size


def test_completeness_is_exact_in_float32():
    net, x = relu_net(torch.float32), X.float()
    found, delta, report = within(net, x, 0.05, target=1)
    change = (report.ends[0] - report.ends[1]).abs().clamp_min(1.0)
    assert (delta.abs() / change).max() < 1e-6
    plain, plain_delta, plain_report = within(net, x, 0.05, target=1, correct_completeness=False)
    assert plain_delta.abs().max() > 1e-3
    np.testing.assert_allclose(plain_report.convergence.residual, -plain_delta.numpy(), atol=1e-5)
    np.testing.assert_allclose(report.convergence.residual, plain_report.convergence.residual, atol=1e-5)
    assert max(errors(found.double(), plain.double())) < 0.05


def test_without_multiplying_by_inputs():
    net = relu_net()
    explainer = igfast.IntegratedGradients(net, multiply_by_inputs=False)
    found = explainer.attribute(X, X.flip(0), 1, tolerance=0.02)
    reference = explainer.attribute(X, X.flip(0), 1, n_steps=2048, method="riemann_middle")
    assert max(errors(found, reference)) < 0.03
    change = net(X)[:, 1] - net(X.flip(0))[:, 1]
    torch.testing.assert_close((found * (X - X.flip(0))).sum(1), change.detach(), rtol=0, atol=1e-12)


def test_several_inputs_and_arguments():
    net = relu_net()

    def forward(a, b, scale):
        return net(torch.cat([a, b], dim=1))[:, 0] * scale

    scale = torch.arange(1.0, 17.0, dtype=torch.float64)
    inputs, options = (X[:, :12], X[:, 12:]), {"additional_forward_args": scale, "baselines": (0.5, X[:1, 12:])}
    found, delta, _ = within(forward, inputs, 0.02, **options)
    reference = fine(forward, inputs, **options)
    assert [part.shape for part in found] == [(16, 12), (16, 8)]
    assert max(errors(torch.cat(found, dim=1), torch.cat(reference, dim=1))) < 0.03
    assert delta.abs().max() < 1e-10


def test_a_layer_and_a_neuron():
    net = relu_net()
    layer = igfast.LayerIntegratedGradients(net, net[0])
    found, report = layer.attribute(X, target=1, tolerance=0.02, return_report=True)
    reference = layer.attribute(X, target=1, n_steps=2048, method="riemann_middle")
    assert max(errors(found, reference)) < 0.03
    assert all(report.convergence.converged)
    neuron = igfast.NeuronIntegratedGradients(net, net[2])
    found, report = neuron.attribute(X, 5, tolerance=0.02, return_report=True)
    reference = neuron.attribute(X, 5, n_steps=2048, method="riemann_middle")
    of_some = [e for e, row in zip(errors(found, reference), reference, strict=True) if row.abs().sum() > 0]
    assert max(of_some) < 0.03
    assert len(report.convergence.evaluations) == 16


def test_rows_that_belong_together_have_one_tolerance():
    net, seen = relu_net(), []

    def bag(x):
        seen.append(len(x))
        return net(x).max(dim=0).values.unsqueeze(0)

    found, delta, report = within(bag, X, 0.02, target=1)
    reference = igfast.IntegratedGradients(bag).attribute(X, target=1, n_steps=512, method="riemann_middle")
    assert set(seen) == {16}
    assert len(report.convergence.evaluations) == 1
    assert float((found - reference).norm() / reference.norm()) < 0.02
    assert delta.abs().max() < 1e-10


@pytest.mark.filterwarnings("ignore:the output of forward_func for one example depends")
def test_rows_that_turn_out_to_depend_have_one_tolerance():
    net = relu_net()

    def mixes(x):
        y = net(x)[:, 1]
        return y - y.mean() / 2

    found, _, report = within(mixes, X, 0.02)
    assert len(report.convergence.evaluations) == 1
    assert "whole steps" in report.notes[0]
    reference = captum.attr.IntegratedGradients(mixes).attribute(
        X, n_steps=512, method="riemann_middle", internal_batch_size=len(X)
    )
    assert float((found - reference).norm() / reference.norm()) < 0.02


def test_what_cannot_be_reached_is_said_by_example():
    def steep(x):
        return (500 * (x - 0.37)).tanh().sum(dim=1)

    x = torch.tensor([[0.1, 0.2], [1.0, 0.5], [0.3, 0.1]], dtype=torch.float64)
    with pytest.warns(igfast.ConvergenceWarning, match=r"1 of 3 examples did not converge.*max_steps=60 \(1\)"):
        _, _, report = within(steep, x, 0.01, max_steps=60)
    assert report.convergence.converged == (True, False, True)
    assert max(report.convergence.evaluations) <= 60
    assert report.convergence.estimate[1] > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _, report = within(steep, x, 0.01)
    assert all(report.convergence.converged)
    assert errors(found, fine(steep, x))[1] < 0.015


def test_jumps_that_no_gradient_shows_are_not_taken_for_converged():
    with pytest.warns(igfast.ConvergenceWarning, match="residual 1, more than that error explains"):
        _, delta, report = within(
            lambda x: (0 * x).sum(dim=1) + (x[:, 0] > 0.5).double(), X[:1] * 0 + 1, 0.05, max_steps=40
        )
    assert not report.convergence.converged[0]
    assert report.convergence.doubtful == (True,)
    assert "more in 1 whose residual it does not explain" in str(report)
    assert report.convergence.residual == (1.0,)
    assert float(delta) == -1.0


@pytest.mark.parametrize(("height", "evaluations"), [(0.01, 9), (0.2, 37)])
def test_only_a_small_correction_is_taken_for_granted(height, evaluations):
    # 16 periods between 9 points: all points see the crests, so that both rules agree on a wrong mean
    def waves(x):
        return (x**2 + 0.1 * x**4 + height * (32 * torch.pi * x).sin() / (32 * torch.pi)).sum(dim=1)

    found, delta, report = within(waves, torch.ones(1, 3).double(), 0.15)
    assert report.convergence.evaluations == (evaluations,)
    assert report.convergence.converged == (True,)
    assert errors(found, fine(waves, torch.ones(1, 3).double()))[0] < 0.15
    assert delta.abs().max() < 1e-12


@pytest.mark.parametrize("x", [torch.zeros(2, 3).double(), torch.ones(2, 3).double()])
def test_nothing_to_attribute(x):
    _, delta, report = within(lambda x: 2 * x.sum(dim=1) - 2 * x.sum(dim=1) + x[:, 0] - x[:, 1], x, 0.05)
    assert report.convergence.evaluations == (9, 9)
    assert all(report.convergence.converged)
    assert delta.abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_model_converges_at_once(dtype):
    torch.manual_seed(0)
    net, x = nn.Linear(50, 2).to(dtype), torch.randn(3, 50, dtype=dtype)
    found, delta, report = within(net, x, 0.001, target=1)
    assert report.convergence.evaluations == (9, 9, 9)
    assert report.convergence.doubtful == (False, False, False)
    torch.testing.assert_close(found, (net.weight[1] * x).detach(), rtol=1e-4, atol=1e-6)
    assert delta.abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:the gradient of example 0 at alpha 0 is NaN")
def test_gradients_that_are_not_finite_end_an_example():
    with pytest.warns(igfast.ConvergenceWarning, match="did not converge"):
        found, _, report = within(lambda x: x.sqrt().sum(dim=1), torch.ones(2, 2).double(), 0.05)
    assert report.convergence.evaluations == (9, 9)
    assert not found.isfinite().all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tolerance": 0.0}, igfast.ArgumentError, "tolerance must be above 0 and below 1; got 0.0"),
        ({"tolerance": 1}, igfast.ArgumentError, "got 1"),
        ({"tolerance": float("nan")}, igfast.ArgumentError, "got nan"),
        ({"tolerance": "5%"}, igfast.ArgumentTypeError, "tolerance must be a number; got a str"),
        ({"tolerance": True}, igfast.ArgumentTypeError, "got a bool"),
        ({"tolerance": 0.1, "max_steps": 8}, igfast.ArgumentError, "max_steps must be at least 9; got 8"),
        ({"tolerance": 0.1, "max_steps": 1e3}, igfast.ArgumentTypeError, "max_steps must be an integer; got a float"),
        ({"tolerance": 0.1, "n_steps": 50}, igfast.ArgumentError, "n_steps and tolerance exclude each other"),
        ({"tolerance": 0.1, "method": "trapezoid"}, igfast.ArgumentError, "method cannot be chosen with tolerance"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        igfast.IntegratedGradients(relu_net()).attribute(X, target=0, **options)


def test_refused_for_complex_inputs_and_where_captum_computes():
    with pytest.raises(igfast.ArgumentError, match="tolerance is for real inputs"):
        igfast.IntegratedGradients(lambda x: x.abs().sum(dim=1)).attribute(X.to(torch.complex128), tolerance=0.1)
    explainer = igfast.IntegratedGradients(relu_net())
    explainer.gradient_func = lambda *args: None
    with pytest.raises(igfast.ArgumentError, match="tolerance is not Captum's"):
        explainer.attribute(X, target=0, tolerance=0.1)


def test_no_examples():
    found, report = igfast.IntegratedGradients(relu_net()).attribute(X[:0], target=0, tolerance=0.1, return_report=True)
    assert found.shape == (0, 20)
    assert report.convergence is None


class Memory:
    def __init__(self, allowed):
        self.allowed = allowed


@pytest.mark.parametrize(
    ("side", "allowed", "segments", "slots"),
    [(64, None, 8, 6), (512, None, 8, 2), (1024, None, 4, 1), (4096, None, 1, 1), (512, 2**27, 2, 1)],
)
def test_large_inputs_have_fewer_segments(side, allowed, segments, slots):
    x = torch.empty(6, 3, side, side, device="meta")
    sizes = _sizes(parse_inputs(x, 0), (accumulator(x),), Memory(allowed))
    assert (sizes.n_segments, sizes.n_slots) == (segments, slots)


@pytest.mark.parametrize("n_segments", [1, 2, 4])
def test_fewer_segments_meet_the_tolerance_too(n_segments, monkeypatch):
    monkeypatch.setattr("igfast.run.tolerance._SEGMENTS", (n_segments,))
    monkeypatch.setattr("igfast.run.tolerance._SUMS_BYTES", (2 * n_segments + 1) * 160 * 3)
    net = relu_net()
    found, delta, report = within(net, X, 0.01, target=1)
    assert max(errors(found, fine(net, X, target=1))) < 0.015
    assert delta.abs().max() < 1e-12
    assert all(report.convergence.converged)


def test_explanations_keep_the_error_bars(tmp_path):
    explanation = igfast.IntegratedGradients(relu_net()).explain(X, target=1, tolerance=0.05)
    again = igfast.Explanation.from_json(explanation.to_json())
    assert again.report.convergence == explanation.report.convergence
    assert "to a tolerance of 0.05" in explanation.summary()
    assert "+- " in explanation.summary()


def test_the_report_says_it():
    _, _, report = within(relu_net(), X, 0.05, target=1)
    assert "converged       16 of 16 examples" in str(report)


def test_random_numbers_and_gradients_of_the_user_stay():
    net = relu_net()
    state = torch.random.get_rng_state()
    within(net, X, 0.05, target=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())
