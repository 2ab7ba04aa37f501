"""A tolerance on models whose layers, rows, dtypes or outputs are not the usual ones."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

import igfast
from igfast.request.inputs import parse_inputs
from igfast.run.path import accumulator
from igfast.run.tolerance import ToTolerance
from tests.run.test_tolerance import Memory, X, errors, fine, relu_net, within


class Around(nn.Module):
    """A layer with a branch that goes around it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(20, 20).double(), nn.Linear(20, 3).double()

    def forward(self, x):
        return self.head(self.body(x).relu() * x.tanh())


def test_a_layer_that_is_not_the_whole_of_the_model():
    model = Around()
    explainer = igfast.LayerIntegratedGradients(model, model.body)
    found, report = explainer.attribute(X, target=1, tolerance=0.02, return_report=True)
    reference = explainer.attribute(X, target=1, n_steps=2048, method="riemann_middle")
    assert all(report.convergence.converged)
    assert max(errors(found, reference)) < 0.03
    assert max(report.convergence.evaluations) < 300


def test_inputs_without_features():
    x = torch.rand(3, dtype=torch.float64)
    found, delta, _ = within(lambda x: x**3, x, 0.01)
    torch.testing.assert_close(found, x**3, rtol=0.01, atol=0)
    assert delta.abs().max() < 1e-12


@pytest.mark.filterwarnings("ignore:the output of forward_func for one example depends")
def test_pairs_that_belong_together():
    net = relu_net()

    def siamese(x):
        pairs = net(x).view(-1, 2, 3)
        return (pairs - 0.5 * pairs.flip(1)).view(-1, 3)

    explainer = igfast.IntegratedGradients(siamese)
    explainer.attribute(X, target=1)  # whole steps in order are right, and remembered
    found, report = explainer.attribute(X, target=1, tolerance=0.02, return_report=True)
    reference = explainer.attribute(X, target=1, n_steps=2048, method="riemann_middle")
    assert "whole steps" in report.notes[0]
    assert float((found - reference).norm() / reference.norm()) < 0.03


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda: nn.Linear(20, 2), torch.bfloat16),
        (lambda: nn.Linear(20, 2), torch.half),
        (lambda: nn.Sequential(nn.Linear(20, 2), Plus(250_000.0)), torch.float32),
    ],
)
def test_rounding_of_the_output_is_no_missing_change(make, dtype):
    torch.manual_seed(0)
    model = make().to(dtype)
    _, _, report = within(model, X.to(dtype), 0.05, target=1)
    assert report.convergence.evaluations == (9,) * 16
    assert all(report.convergence.converged)


class Plus(nn.Module):
    def __init__(self, offset):
        super().__init__()
        self.offset = offset

    def forward(self, x):
        return x + self.offset


def test_under_autocast():
    net, x = relu_net(torch.float32), X.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _, report = within(net, x, 0.1, target=1)
    assert np.mean(report.convergence.converged) > 0.8
    assert max(report.convergence.evaluations) < 300
    assert np.median(errors(found.double(), fine(relu_net(), X, target=1))) < 0.1


def test_outputs_that_are_not_finite_are_not_converged():
    with pytest.warns(igfast.ConvergenceWarning, match="n_steps helps"):
        found, _, report = within(lambda x: x.sum(dim=1) + float("inf"), X[:2], 0.05)
    assert report.convergence.converged == (False, False)
    assert report.convergence.evaluations == (9, 9)
    assert found.isfinite().all()


def test_tolerances_of_numpy():
    explanation = igfast.IntegratedGradients(relu_net()).explain(X, target=1, tolerance=np.float32(0.05))
    assert type(explanation.meta["tolerance"]) is float


def test_the_memory_of_the_sums_is_given_back():
    class Counted(Memory):
        def __init__(self):
            super().__init__(None)
            self.held = 0

        def for_results(self, n_bytes):
            self.held += n_bytes
            return nullcontext()

        def release(self, n_bytes):
            self.held -= n_bytes

    memory = Counted()

    def ends():
        return [(torch.ones(2), torch.zeros(2))]

    class Fails:
        device, dtype = torch.device("cpu"), torch.float32

        def of(self, rows):
            raise MemoryError

    x = torch.ones(2, 3)
    with pytest.raises(MemoryError):
        ToTolerance(0.1, 100, True, True).integrate(Fails(), parse_inputs(x, 0), (accumulator(x),), ends, memory)
    assert memory.held == 0
