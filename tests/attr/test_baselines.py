"""Averages over several baselines in one run equal the mean of single runs."""

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

import igfast
from tests import models
from tests.oracle import relative_difference


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()


G = torch.Generator().manual_seed(0)
X, DATA = (torch.randn(n, 6, generator=G, dtype=torch.float64) for n in (3, 7))


def mean_of_single(explainer, x, data, **options):
    return sum(explainer.attribute(x, one[None], n_steps=9, **options) for one in data) / len(data)


@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize("size", [None, 1, 2, 10])
def test_equals_the_mean_of_single_runs(multiply, size):
    explainer = igfast.IntegratedGradients(net(), multiply_by_inputs=multiply)
    found = explainer.attribute(X, igfast.Baselines(DATA), 1, n_steps=9, internal_batch_size=size)
    torch.testing.assert_close(found, mean_of_single(explainer, X, DATA, target=1), rtol=1e-12, atol=1e-14)


def test_delta_and_spread():
    model = net()
    explainer = igfast.IntegratedGradients(model)
    found, delta, report = explainer.attribute(
        X, igfast.Baselines(DATA), 1, return_convergence_delta=True, return_report=True
    )
    values = model(DATA)[:, 1].detach()
    change = model(X)[:, 1].detach() - values.mean()
    torch.testing.assert_close(delta, found.sum(dim=1) - change, rtol=0, atol=1e-12)
    assert delta.abs().max() < 1e-8
    np.testing.assert_allclose(report.spread, [float(values.std(correction=0))] * 3, rtol=1e-10)
    assert report.n_rows == 3 * 7 * 50


def test_random_subsets_are_those_of_the_seed():
    explainer = igfast.IntegratedGradients(net())
    found, again, other = (
        explainer.attribute(X, igfast.Baselines(DATA, n_samples=4, seed=seed), 1, n_steps=9) for seed in (0, 0, 1)
    )
    assert torch.equal(found, again)
    assert not torch.allclose(found, other)
    chosen = igfast.Baselines(DATA, n_samples=4).chosen(3)
    assert chosen.shape == (4, 3)
    assert all(len(set(column)) == 4 for column in chosen.T.tolist())
    for index in range(3):
        expected = mean_of_single(explainer, X[index : index + 1], DATA[chosen[:, index]], target=1)
        torch.testing.assert_close(found[index : index + 1], expected, rtol=1e-12, atol=1e-14)


def test_targets_and_arguments_of_each_example():
    model = net()
    explainer = igfast.IntegratedGradients(lambda x, scale: model(x) * scale)
    options = {"target": [0, 2, 1], "additional_forward_args": torch.tensor([[1.0], [2.0], [3.0]]).double()}
    found, delta = explainer.attribute(X, igfast.Baselines(DATA), return_convergence_delta=True, **options)
    assert delta.abs().max() < 1e-7
    found = explainer.attribute(X, igfast.Baselines(DATA), n_steps=9, **options)
    torch.testing.assert_close(found, mean_of_single(explainer, X, DATA, **options), rtol=1e-12, atol=1e-14)


def test_several_inputs_whose_baselines_belong_together():
    model = net()
    explainer = igfast.IntegratedGradients(lambda a, b: model(torch.cat([a, b], dim=1))[:, 0])
    a, b, of_a, of_b = X[:, :2], X[:, 2:], DATA[:, :2], DATA[:, 2:]
    found = explainer.attribute((a, b), igfast.Baselines((of_a, of_b)), n_steps=9)
    single = [explainer.attribute((a, b), (p[None], q[None]), n_steps=9) for p, q in zip(of_a, of_b, strict=True)]
    for index in range(2):
        expected = sum(one[index] for one in single) / len(single)
        torch.testing.assert_close(found[index], expected, rtol=1e-12, atol=1e-14)


def test_rows_that_belong_together():
    model = net()
    explainer = igfast.IntegratedGradients(lambda x: model(x).max(dim=0).values.unsqueeze(0))
    found, delta = explainer.attribute(X, igfast.Baselines(DATA), 1, n_steps=200, return_convergence_delta=True)
    single = sum(explainer.attribute(X, one[None].expand_as(X), 1, n_steps=200) for one in DATA) / len(DATA)
    torch.testing.assert_close(found, single, rtol=1e-10, atol=1e-12)
    assert delta.shape == (1,)
    assert delta.abs().max() < 1e-2
    explainer.attribute(X, igfast.Baselines(DATA, n_samples=2), 1, n_steps=5)


def test_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).double()
    images, data = torch.rand(2, 3, 8, 8).double(), torch.rand(5, 3, 8, 8).double()
    explainer = igfast.IntegratedGradients(model)
    found = explainer.attribute(images, igfast.Baselines(data), 1, n_steps=9)
    torch.testing.assert_close(found, mean_of_single(explainer, images, data, target=1), rtol=1e-12, atol=1e-14)


def test_several_targets_a_neuron_and_explanations():
    model = net()
    explainer = igfast.IntegratedGradients(model)
    for one, target in zip(
        explainer.attribute_targets(X, [0, 2], igfast.Baselines(DATA), n_steps=9), [0, 2], strict=True
    ):
        torch.testing.assert_close(one, mean_of_single(explainer, X, DATA, target=target), rtol=1e-12, atol=1e-14)
    neuron = igfast.NeuronIntegratedGradients(model, model[0])
    found = neuron.attribute(X, 3, igfast.Baselines(DATA), n_steps=9)
    single = sum(neuron.attribute(X, 3, one[None], n_steps=9) for one in DATA) / len(DATA)
    torch.testing.assert_close(found, single, rtol=1e-12, atol=1e-14)
    explanation = explainer.explain(X, igfast.Baselines(DATA), 1)
    assert explanation.meta["averaged_over"] == 7
    assert torch.equal(igfast.Explanation.from_json(explanation.to_json()).baselines, DATA)
    mean = model(DATA)[:, 1].mean().detach()
    torch.testing.assert_close(explanation.baseline_predictions, mean.expand(3), rtol=1e-10, atol=1e-12)


def test_data_of_another_dtype_is_converted():
    found = igfast.IntegratedGradients(net().float()).attribute(X.float(), igfast.Baselines(DATA), 1)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: igfast.Baselines([[1.0]]), igfast.ArgumentTypeError, r"needs a tensor \(K, \*features\)"),
        (lambda: igfast.Baselines(DATA[:0]), igfast.ArgumentError, "at least one baseline"),
        (lambda: igfast.Baselines((DATA, DATA[:3])), igfast.ArgumentError, "got rows 7, 3"),
        (lambda: igfast.Baselines(()), igfast.ArgumentError, "got rows none"),
        (lambda: igfast.Baselines(DATA, n_samples=0), igfast.ArgumentError, "n_samples must be 1 to 7"),
        (lambda: igfast.Baselines(DATA, n_samples=8), igfast.ArgumentError, "n_samples must be 1 to 7"),
        (lambda: igfast.Baselines(DATA, n_samples=2.0), igfast.ArgumentTypeError, "n_samples must be an integer"),
    ],
)
def test_bad_baselines(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("baselines", "options", "error", "message"),
    [
        (igfast.Baselines(DATA[:, :5]), {}, igfast.BaselineError, r"must have shape \('K', 6\)"),
        (igfast.Baselines((DATA, DATA)), {}, igfast.BaselineError, "2 tensors for 1 inputs"),
        (igfast.Baselines(DATA), {"tolerance": 0.1}, igfast.ArgumentError, "tolerance is for one baseline"),
    ],
)
def test_baselines_that_do_not_fit(baselines, options, error, message):
    with pytest.raises(error, match=message):
        igfast.IntegratedGradients(net()).attribute(X, baselines, 1, **options)


def test_not_for_layers_or_where_captum_computes():
    model = net()
    with pytest.raises(igfast.ArgumentTypeError, match="got a Baselines"):
        igfast.LayerIntegratedGradients(model, model[0]).attribute(X, igfast.Baselines(DATA), 1)
    explainer = igfast.IntegratedGradients(model)
    explainer.gradient_func = lambda *args: None
    with pytest.raises(igfast.ArgumentError, match=r"igfast.Baselines are not Captum's"):
        explainer.attribute(X, igfast.Baselines(DATA), 1)


def test_inputs_with_other_numbers_of_rows():
    with pytest.raises(igfast.BaselineError, match=r"one number of rows; got \[1, 3\]"):
        igfast.IntegratedGradients(lambda a, b: (a * b).sum(dim=1)).attribute(
            (X, X[:1]), igfast.Baselines((DATA, DATA))
        )


def test_one_number_for_all_examples():
    model = net()
    neuron = igfast.NeuronIntegratedGradients(model, model[0])
    explanation = neuron.explain(X, lambda value: value.sum(), igfast.Baselines(DATA))
    assert explanation.deltas.abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 3, 1, 1), (1, 1, 8, 8), (1, 8)])
def test_a_baseline_of_one_row_broadcasts_as_in_captum(shape):
    network, x = models.convnet(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    baseline = torch.rand(shape, dtype=torch.float64)
    got, delta = igfast.IntegratedGradients(network).attribute(x, baseline, 1, return_convergence_delta=True)
    wanted = captum.attr.IntegratedGradients(network).attribute(x, baseline, 1)
    assert relative_difference(got, wanted) <= 1e-7
    assert delta.shape == (2,)
    assert float(delta.abs().max()) < 1e-2


@pytest.mark.parametrize("shape", [(2,), (3, 1, 1), (1, 2, 1, 1), (1, 1, 3, 8, 8), ()])
def test_baselines_that_do_not_broadcast_from_one_row(shape):
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(igfast.BaselineError, match=r"or be one row that broadcasts to \(1, 3, 8, 8\)"):
        igfast.IntegratedGradients(models.convnet()).attribute(x, torch.zeros(shape), 1)


def test_one_token_stands_for_all_of_a_text():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)).double()
    ids = torch.randint(0, 9, (3, 5))
    explainer = igfast.LayerIntegratedGradients(model, model[0])
    got = explainer.attribute(ids, torch.tensor([[2]]), target=1)
    assert torch.equal(got, explainer.attribute(ids, torch.full_like(ids, 2), target=1))
