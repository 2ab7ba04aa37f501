"""`explain` gives what `attribute` gives, with predictions, deltas and where they come from."""

import inspect

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

import igfast


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def text_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)).double()


def test_has_what_attribute_returns():
    net, x, baseline = model(), torch.rand(5, 4).double(), torch.rand(1, 4).double()
    explainer = igfast.IntegratedGradients(net)
    explanation = explainer.explain(x, baseline, target=2, n_steps=7, method="riemann_middle")
    attributions, delta = explainer.attribute(x, baseline, 2, None, 7, "riemann_middle", return_convergence_delta=True)
    assert torch.equal(explanation.attributions, attributions)
    assert torch.equal(explanation.deltas, delta)
    torch.testing.assert_close(explanation.predictions, net(x)[:, 2].detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(explanation.baseline_predictions, net(baseline)[:, 2].detach().expand(5))
    assert explanation.inputs is x or torch.equal(explanation.inputs, x)
    assert explanation.target == 2
    assert explanation.report.n_rows == 35
    assert explanation.meta["n_steps"] == 7
    assert explanation.meta["rule"] == "riemann_middle"
    assert explanation.meta["model"] == "Sequential"
    assert explanation.meta["method"] == "IntegratedGradients"


def test_arrays_become_tensors_of_the_models_dtype():
    net = model().float()
    x = np.random.default_rng(0).random((3, 4))
    explanation = igfast.IntegratedGradients(net).explain(x, np.zeros((1, 4)), target=np.array([0, 1, 2]))
    assert explanation.inputs.dtype == torch.float32
    expected = igfast.IntegratedGradients(net).attribute(torch.tensor(x).float(), target=torch.tensor([0, 1, 2]))
    assert torch.equal(explanation.attributions, expected)
    assert isinstance(explanation.to_numpy(), np.ndarray)


@pytest.mark.parametrize("x", [np.ones((2, 4))[:, ::-1], np.ones((4, 2)).T, np.broadcast_to(np.ones(4), (2, 4))])
def test_arrays_of_any_layout(x):
    assert igfast.IntegratedGradients(model()).explain(x, target=0).attributions.shape == (2, 4)


def test_several_inputs_are_a_tuple():
    def forward(a, b, scale):
        return (a * b).sum(dim=1) * scale

    a, b = np.ones((2, 3)), np.full((2, 3), 2.0)
    explanation = igfast.IntegratedGradients(forward).explain((a, b), additional_forward_args=np.array([1.0, 2.0]))
    assert [tuple(t.shape) for t in explanation.attributions] == [(2, 3), (2, 3)]
    torch.testing.assert_close(explanation.predictions, torch.tensor([6.0, 12.0]).double())
    assert [array.shape for array in explanation.to_numpy()] == [(2, 3), (2, 3)]


def test_a_layer():
    net = text_model()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    explainer = igfast.LayerIntegratedGradients(net, net[0])
    explanation = explainer.explain(ids, target=1, feature_names=[list("abc"), list("de")])
    attributions, delta = explainer.attribute(ids, target=1, return_convergence_delta=True)
    assert torch.equal(explanation.attributions, attributions)
    torch.testing.assert_close(explanation.deltas, delta)
    torch.testing.assert_close(explanation.predictions, net(ids)[:, 1].detach())
    torch.testing.assert_close(explanation.baseline_predictions, net(torch.zeros_like(ids))[:, 1].detach())
    assert explanation.meta["layer"].endswith("(Embedding)")
    assert explanation.feature_names == (("a", "b", "c"), ("d", "e"))


def test_a_neuron():
    net, x = model(), torch.rand(2, 4).double()
    explanation = igfast.NeuronIntegratedGradients(net, net[0]).explain(x, 5, n_steps=20)
    hidden = net[0](x).detach()[:, 5]
    torch.testing.assert_close(explanation.predictions, hidden)
    assert explanation.target == 5
    assert explanation.deltas.abs().max() < 1e-6
    by_function = igfast.NeuronIntegratedGradients(net, net[0]).explain(x, lambda value: value[:, 5])
    assert by_function.target == "<lambda>"


class CountsCalls(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.rows = net, 0

    def forward(self, x):
        self.rows += len(x)
        return self.net(x)


@pytest.mark.parametrize("at_layer", [False, True])
def test_predictions_cost_no_more_than_the_delta(at_layer):
    def rows(explain):
        net = CountsCalls(model())
        layer = igfast.LayerIntegratedGradients(net, net.net[0])
        explainer, x = layer if at_layer else igfast.IntegratedGradients(net), torch.rand(1, 4).double()
        explainer.explain(x, target=0) if explain else explainer.attribute(x, target=0, return_convergence_delta=True)
        return net.rows

    assert rows(True) == rows(False) > 50


def test_a_layer_of_a_model_that_squeezes_one_example():
    class Squeezes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = text_model()

        def forward(self, ids):
            return self.net(ids).squeeze(0)

    net = Squeezes()
    explanation = igfast.LayerIntegratedGradients(net, net.net[0]).explain(torch.tensor([[1, 2, 3]]), target=1)
    torch.testing.assert_close(explanation.predictions, net.net(torch.tensor([[1, 2, 3]]))[:, 1].detach())


def test_tensors_of_the_result_are_its_own():
    x, baseline, target = torch.rand(2, 4).double(), torch.rand(1, 4).double(), torch.tensor([0, 1])
    explanation = igfast.IntegratedGradients(model()).explain(x, baseline, target)
    before = explanation.to_json()
    for tensor in (x, baseline, target):
        tensor.zero_()
    assert explanation.to_json() == before


def test_windows_of_an_image_have_a_delta_for_each_example():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):  # (batch, 2 windows, 4)
            windows = self.body(x.flatten(0, 1)).tanh()
            return self.head(windows.unflatten(0, (len(x), 2)).mean(dim=1))

    torch.manual_seed(0)
    net, x = Windows().double(), torch.rand(3, 2, 4).double()
    explainer = igfast.LayerIntegratedGradients(net, net.body)
    explanation = explainer.explain(x, target=0)
    _, delta = explainer.attribute(x, target=0, return_convergence_delta=True)
    assert explanation.deltas.shape == delta.shape == (3,)


def test_the_inputs_of_a_layer():
    net = text_model()
    explanation = igfast.LayerIntegratedGradients(net, net[2]).explain(
        torch.tensor([[1, 2, 3]]), target=0, attribute_to_layer_input=True
    )
    assert explanation.attributions.shape == (1, 12)


def test_a_neuron_that_is_one_number_for_all():
    net = model()
    explanation = igfast.NeuronIntegratedGradients(net, net[0]).explain(torch.rand(2, 4).double(), lambda v: v.sum())
    assert explanation.predictions.shape == (1,)
    assert "<table>" in explanation._repr_html_()


def test_a_0d_array_stays_0d():
    explanation = igfast.IntegratedGradients(lambda x, k: (x * k).sum(1)).explain(
        np.ones((3, 2)), additional_forward_args=np.array(2.0)
    )
    assert explanation.predictions.tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize("inputs", [[1.0], (), 3])
def test_wrong_inputs_are_named_with_names_too(inputs):
    with pytest.raises(igfast.InputTypeError, match="inputs must be a tensor"):
        igfast.IntegratedGradients(model()).explain(inputs, target=0, feature_names=["a"])


def test_rows_that_depend_on_each_other_have_one_delta():
    explanation = igfast.IntegratedGradients(lambda x: x.sum().reshape(1) ** 2).explain(torch.rand(3, 2).double())
    assert explanation.predictions.shape == explanation.deltas.shape == (1,)
    assert abs(float(explanation.deltas)) < 1e-9
    assert "in total" not in explanation.summary()


def test_calls_that_are_left_to_captum():
    class Doubled(igfast.IntegratedGradients):
        def _attribute(self, *args, **kwargs):
            return tuple(2 * a for a in captum.attr.IntegratedGradients._attribute(self, *args, **kwargs))

    net, x = model(), torch.rand(2, 4).double()
    explanation = Doubled(net).explain(x, target=0)
    single = igfast.IntegratedGradients(net).explain(x, target=0)
    torch.testing.assert_close(explanation.attributions, 2 * single.attributions, rtol=1e-6, atol=1e-8)
    assert "Captum" in explanation.report.notes[0]


@pytest.mark.parametrize("cls", [igfast.IntegratedGradients, igfast.LayerIntegratedGradients])
def test_unknown_arguments_are_refused(cls):
    net = text_model()
    explainer = cls(net) if cls is igfast.IntegratedGradients else cls(net, net[0])
    with pytest.raises(igfast.ArgumentTypeError, match=r"explain takes the arguments of attribute.*return_report"):
        explainer.explain(torch.ones(1, 3), return_report=True)
    with pytest.raises(igfast.ArgumentTypeError, match="inputs"):
        explainer.explain()
    assert "feature_names" in inspect.signature(explainer.explain).parameters


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], r"feature_names has 2 names, but inputs has shape \(2, 4\)"),
        ([["a"]], "1 lists of 1 names"),
        ([["a"] * 5] * 2, "2 lists of 5 names"),
        ("abcd", "list of names"),
        ([1, 2, 3, 4], "list of names"),
    ],
)
def test_names_must_fit(names, message):
    with pytest.raises(igfast.ArgumentError, match=message):
        igfast.IntegratedGradients(model()).explain(torch.ones(2, 4).double(), target=0, feature_names=names)


def test_arrays_of_texts_are_refused():
    with pytest.raises(igfast.InputTypeError, match="inputs is an array of <U1; it must hold numbers"):
        igfast.IntegratedGradients(model()).explain(np.array([["a"]]), target=0)


def test_summary_says_what_was_attributed_and_how_complete_it_is():
    text = igfast.IntegratedGradients(model()).explain(torch.ones(12, 4).double(), target=0).summary()
    assert "IntegratedGradients of Sequential, 50 steps of gausslegendre" in text
    assert "inputs (12, 4), baselines 0, target 0" in text
    assert "... and 2 more" in text
