"""Alibi's interface, against the formula written down: sum of weighted gradients times (X - baselines)."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import igfast
from igfast.alibi import Explanation, IntegratedGradients

RNG = np.random.default_rng(0)


def formula(function, x, baselines, n_steps):
    """Integrated gradients of each row's own number, by Gauss-Legendre nodes, one point at a time; float64."""
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)
    total = torch.zeros_like(x)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        point = (baselines + node * (x - baselines)).requires_grad_()
        total += weight * torch.autograd.grad(function(point).sum(), point)[0]
    return (total * (x - baselines)).numpy()


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10), nn.Softmax(1)).double()


def test_images_with_predicted_classes():
    model, X = classifier(), RNG.random((5, 1, 8, 8))
    explainer = IntegratedGradients(model, target_fn=partial(np.argmax, axis=1), n_steps=30)
    explanation = explainer.explain(X, baselines=0.5)
    x = torch.tensor(X)
    predictions = model(x).detach()
    targets = predictions.argmax(1)
    expected = formula(lambda p: model(p)[torch.arange(5), targets], x, torch.full_like(x, 0.5), 30)
    assert isinstance(explanation.attributions, list)
    np.testing.assert_allclose(explanation.attributions[0], expected, atol=1e-12)
    np.testing.assert_allclose(explanation.predictions, predictions.numpy())
    assert explanation.target.tolist() == targets.tolist()
    at_baseline = model(torch.full_like(x, 0.5)).detach()
    change = (predictions - at_baseline)[torch.arange(5), targets].numpy()
    np.testing.assert_allclose(explanation.deltas, expected.sum(axis=(1, 2, 3)) - change, atol=1e-12)
    assert explanation.data["X"] is X
    np.testing.assert_array_equal(explanation.baselines, np.full_like(X, 0.5))


def text_model():
    torch.manual_seed(0)
    embedding = nn.Embedding(30, 4)
    return nn.Sequential(embedding, nn.Flatten(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 2), nn.Softmax(1)).double()


@pytest.mark.parametrize("by_function", [True, False])
def test_embedding_layer(by_function):
    model, X = text_model(), RNG.integers(1, 30, (3, 6))
    layer = (lambda m: m[0]) if by_function else model[0]
    explanation = IntegratedGradients(model, layer=layer, n_steps=40).explain(X, target=[0, 1, 1])
    embedded = model[0](torch.tensor(X)).detach()
    baseline = model[0](torch.zeros(3, 6, dtype=torch.int64)).detach()
    expected = formula(lambda e: model[1:](e)[torch.arange(3), [0, 1, 1]], embedded, baseline, 40)
    np.testing.assert_allclose(explanation.attributions[0], expected, atol=1e-12)
    assert explanation.meta["params"]["layer"] == "0"


def test_layer_inputs():
    model, X = text_model(), RNG.integers(1, 30, (2, 6))
    of_inputs = IntegratedGradients(model, layer=model[2]).explain(X, target=1, attribute_to_layer_inputs=True)
    of_outputs = IntegratedGradients(model, layer=model[1]).explain(X, target=1)
    np.testing.assert_allclose(of_inputs.attributions[0], of_outputs.attributions[0], atol=1e-12)
    assert of_inputs.meta["params"]["attribute_to_layer_inputs"] is True


class TwoInputs(nn.Module):
    def forward(self, a, b, *, scale, power=1):
        return ((a * b.mean(dim=1, keepdim=True)) * scale) ** power


def test_several_inputs_and_keywords():
    a, b, scale = RNG.random((4, 3)), RNG.random((4, 2)), RNG.random((4, 1))
    explanation = IntegratedGradients(TwoInputs(), n_steps=20, internal_batch_size=3).explain(
        [a, b], forward_kwargs={"scale": scale, "power": 2}, baselines=[0.1, np.zeros((4, 2))], target=2
    )
    ta, tb, ts = map(torch.tensor, (a, b, scale))
    joined = torch.cat([ta, tb], dim=1)
    start = torch.cat([torch.full_like(ta, 0.1), torch.zeros_like(tb)], dim=1)
    expected = formula(lambda p: TwoInputs()(p[:, :3], p[:, 3:], scale=ts, power=2)[:, 2], joined, start, 20)
    np.testing.assert_allclose(np.concatenate(explanation.attributions, axis=1), expected, atol=1e-12)
    assert [array.shape for array in explanation.baselines] == [(4, 3), (4, 2)]
    assert explanation.forward_kwargs["scale"] is scale


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_one_output_is_a_class_and_its_complement(shape):
    torch.manual_seed(0)
    linear = nn.Linear(3, 1).double()
    X = RNG.random((2, 3))

    class Model(nn.Module):
        def forward(self, x):
            return linear(x).sigmoid().reshape(shape)

    explanation = IntegratedGradients(Model(), n_steps=20).explain(X, target=np.array([1, 0], dtype=np.uint8))
    x = torch.tensor(X)
    expected = formula(lambda p: Model()(p).reshape(-1), x, torch.zeros_like(x), 20) * [[1], [-1]]
    np.testing.assert_allclose(explanation.attributions[0], expected, atol=1e-12)
    assert np.abs(explanation.deltas).max() < 1e-6


def test_regression_needs_no_target():
    explanation = IntegratedGradients(nn.Linear(3, 1)).explain(RNG.random((2, 3)).astype(np.float32))
    assert explanation.target is None
    assert explanation.attributions[0].dtype == np.float32


def test_outputs_of_more_dimensions():
    class Grid(nn.Module):
        def forward(self, x):
            return x.unsqueeze(2) * torch.arange(1.0, 4.0)

    explanation = IntegratedGradients(Grid()).explain(np.ones((2, 4), np.float32), target=[[1, 2], [3, 0]])
    np.testing.assert_allclose(explanation.attributions[0], [[0, 3, 0, 0], [0, 0, 0, 1]], atol=1e-6)


def test_json():
    explanation = IntegratedGradients(nn.Linear(3, 2), n_steps=5).explain(RNG.random((2, 3)), target=np.array([0, 1]))
    content = json.loads(explanation.to_json())
    assert content["meta"]["name"] == "IntegratedGradients"
    assert content["meta"]["params"]["n_steps"] == 5
    assert content["data"]["attributions"] == [explanation.attributions[0].tolist()]
    assert Explanation.from_json(explanation.to_json()).deltas == explanation.deltas.tolist()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: IntegratedGradients(3), igfast.ArgumentTypeError, "model must be a torch.nn.Module; got 3"),
        (lambda: IntegratedGradients(nn.Linear(2, 2), target_fn=1), igfast.ArgumentTypeError, "target_fn must be call"),
        (lambda: IntegratedGradients(nn.Linear(2, 2), layer="x"), igfast.ArgumentTypeError, "layer must be a module"),
        (lambda: IntegratedGradients(nn.Linear(2, 2), layer=lambda m: 1), igfast.ArgumentTypeError, "got 1"),
        (lambda: IntegratedGradients(nn.Linear(2, 2), method="simpson"), igfast.ArgumentError, "method"),
        (lambda: IntegratedGradients(nn.Linear(2, 2), n_steps=0), igfast.ArgumentError, "n_steps"),
        (lambda: explain(), igfast.TargetError, "target is None, but the model returned"),
        (lambda: explain(target=[0]), igfast.TargetError, "one entry per example, 3"),
        (lambda: explain(target=0.5), igfast.TargetTypeError, "target must be integers; got float64"),
        (lambda: explain(target=5), igfast.TargetError, "out of range"),
        (lambda: explain(target=0, attribute_to_layer_inputs=True), igfast.ArgumentError, "needs a layer"),
        (lambda: explain(target=0, baselines=np.zeros((1, 4))), igfast.BaselineError, "baselines"),
        (lambda: explain(model=nn.Linear(2, 1), target=2), igfast.TargetError, "must be 0 or 1"),
        (lambda: explain(target=0).nothing, AttributeError, "the explanation has no 'nothing'; its data are"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def explain(model=None, **arguments):
    return IntegratedGradients(model or nn.Linear(2, 4)).explain(np.ones((3, 2)), **arguments)


def test_integers_that_are_no_ids():
    model = nn.Linear(2, 2)
    X = np.array([[1, 2], [3, 4], [5, 6]])
    explanation = IntegratedGradients(model, n_steps=5).explain(X, target=0)
    expected = X * model.weight[0].detach().numpy()
    np.testing.assert_allclose(explanation.attributions[0], expected, rtol=1e-5)
    assert explanation.data["X"] is X


class Positions(nn.Module):
    """One output, of four positions of an example that a layer sees as rows of their own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.token, self.head = nn.Linear(6, 5), nn.Linear(20, 1)

    def forward(self, x):
        return self.head(self.token(x.reshape(-1, 6)).tanh().reshape(len(x), 20)).sigmoid()


def test_the_complement_at_a_layer_with_several_rows_for_each_example():
    model, X = Positions().double().eval(), np.random.default_rng(1).random((2, 4, 6))
    explainer = IntegratedGradients(model, layer=model.token)
    output, complement, mixed = (explainer.explain(X, target=target) for target in ([1, 1], [0, 0], [1, 0]))
    np.testing.assert_allclose(complement.attributions[0], -output.attributions[0])
    np.testing.assert_allclose(mixed.attributions[0][:4], output.attributions[0][:4])
    np.testing.assert_allclose(mixed.attributions[0][4:], -output.attributions[0][4:])
    np.testing.assert_allclose(mixed.deltas, output.deltas * [1, -1])


def test_the_delta_of_a_complement_has_its_sign():
    model, X = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()).double(), np.full((2, 3), 30.0)
    explainer = IntegratedGradients(model, n_steps=2)
    output, complement = (explainer.explain(X, target=[target] * 2) for target in (1, 0))
    assert np.abs(output.deltas).max() > 1e-4
    np.testing.assert_allclose(complement.deltas, -output.deltas)


def test_a_model_that_drops_the_dimension_of_a_single_example():
    torch.manual_seed(0)
    layer, X = nn.Linear(3, 4).double(), np.random.default_rng(1).random((1, 3))

    class Squeezed(nn.Module):
        def forward(self, x):
            return layer(x).tanh().squeeze()

    explanation = IntegratedGradients(Squeezed()).explain(X, target=2)
    wanted = igfast.IntegratedGradients(Squeezed()).attribute(torch.tensor(X), target=2)
    np.testing.assert_allclose(explanation.attributions[0], wanted.numpy())
    with pytest.raises(igfast.TargetError, match="target is None"):
        IntegratedGradients(Squeezed()).explain(X)
