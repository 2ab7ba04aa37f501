"""What was found out for one neuron, layer or argument is not used for another; options and arguments arrive."""

import captum.attr
import pytest
import torch
from torch import nn

import igfast
from tests import models
from tests.oracle import relative_difference

X = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SMALL = X[:2, :3].contiguous()


class Both(nn.Module):
    """Six numbers of each example alone, and six that depend on the other examples."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x):
        return self.layer(torch.cat([x.tanh(), (x - x.mean(0)) ** 2], 1))


def test_facts_of_one_neuron_are_not_anothers():
    model = Both()
    explainer = igfast.NeuronIntegratedGradients(model, model.layer)
    explainer.attribute(X, 0)
    with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
        got = explainer.attribute(X, 7)
    wanted = captum.attr.NeuronIntegratedGradients(model, model.layer).attribute(X, 7, internal_batch_size=4)
    assert relative_difference(got, wanted) <= 1e-6


def test_facts_of_one_layer_are_not_anothers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double().train()
    igfast.LayerIntegratedGradients(model, model[2]).attribute(X, target=1)
    with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
        igfast.LayerIntegratedGradients(model, model[0]).attribute(X, target=1)


def test_an_argument_of_another_shape_is_another_kind_of_call():
    def forward(x, given):  # both kinds of argument are integers, so that the shape alone tells
        if len(given) == len(x):
            return x.tanh() * given
        return torch.tanh(x + torch.zeros_like(x).index_add(0, given[1], x[given[0]]))

    explainer = igfast.IntegratedGradients(forward)
    explainer.attribute(X, target=1, additional_forward_args=torch.ones(4, 1, dtype=torch.int64))
    edges = torch.randint(0, 4, (2, 30), generator=torch.Generator().manual_seed(0))
    _, report = explainer.attribute(X, target=1, additional_forward_args=edges, return_report=True)
    assert report.notes[0].startswith("whole steps")


@pytest.mark.parametrize("size", [None, 1])
def test_comparisons_that_agree_draw_nothing(size):
    """A model that draws, but whose outputs agree up to rounding: later draws are those of a call without checks."""
    torch.manual_seed(0)
    layer, drawn = nn.Linear(6, 3).double(), []
    explainer = igfast.IntegratedGradients(lambda x: layer(x) * (1 + 1e-10 * torch.rand(())))
    for _ in range(2):
        torch.manual_seed(3)
        explainer.attribute(X[:2], target=1, n_steps=4, internal_batch_size=size)
        drawn.append(torch.rand(1))
    assert torch.equal(*drawn)


def test_several_targets_with_arguments():
    torch.manual_seed(0)
    layer = nn.Linear(3, 5).double()
    factor = torch.tensor([[0.3], [2.0]], dtype=torch.float64)
    explainer = igfast.IntegratedGradients(lambda x, factor: layer(x).tanh() * factor)
    each = explainer.attribute_targets(SMALL, [0, 3], additional_forward_args=factor)
    for one, target in zip(each, (0, 3), strict=True):
        torch.testing.assert_close(one, explainer.attribute(SMALL, target=target, additional_forward_args=factor))
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    layered = igfast.LayerIntegratedGradients(model, model[0])
    (one,) = layered.attribute_targets(SMALL, [3], attribute_to_layer_input=True)
    torch.testing.assert_close(one, layered.attribute(SMALL, target=3, attribute_to_layer_input=True))


CALLS = {
    "layer": lambda m, x: igfast.LayerIntegratedGradients(m, m[0]).attribute(x, target=0, internal_batch_size=4),
    "neuron": lambda m, x: igfast.NeuronIntegratedGradients(m, m[1]).attribute(x, 0, internal_batch_size=4),
    "explained neuron": lambda m, x: igfast.NeuronIntegratedGradients(m, m[1]).explain(x, 0, internal_batch_size=4),
    "delta": lambda m, x: igfast.IntegratedGradients(m).compute_convergence_delta(x, 0, x, target=0),
}


@pytest.mark.parametrize("call", CALLS)
def test_running_statistics_are_put_back(call):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    CALLS[call](model, X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "call",
    [
        lambda m: igfast.LayerIntegratedGradients(m, m[0]).attribute(SMALL, target=0),
        lambda m: igfast.NeuronIntegratedGradients(m, m[0]).attribute(SMALL, 0),
        lambda m: igfast.NeuronIntegratedGradients(m, m[0]).explain(SMALL, 0).predictions,
    ],
)
def test_inference_mode(call):
    model = models.mlp()
    wanted = call(model)
    with torch.inference_mode():
        assert torch.equal(call(model), wanted)


def test_the_budget_of_layers_and_neurons_arrives():
    model, options = models.mlp(), {"memory_budget": "1GiB"}
    layer = igfast.LayerIntegratedGradients(model, model[0], **options)
    neuron = igfast.NeuronIntegratedGradients(model, model[0], **options)
    of_layer = layer.attribute(SMALL, target=0, return_report=True)[1]
    of_neuron = neuron.attribute(SMALL, 0, return_report=True)[1]
    assert of_layer.budget_bytes == of_neuron.budget_bytes == 2**30


def test_neurons_of_what_a_layer_takes_in_are_explained():
    model = models.mlp()
    explanation = igfast.NeuronIntegratedGradients(model, model[1]).explain(SMALL, 0, attribute_to_neuron_input=True)
    torch.testing.assert_close(explanation.predictions, model[0](SMALL)[:, 0].detach())


def test_integers_become_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        got = igfast.IntegratedGradients(lambda x: x.square().sum(1)).attribute(torch.tensor([[1, 2]]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype is torch.float64


def test_allow_unused_alone_is_zero():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.aside = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            self.aside(x)
            return self.layer(x)

    model = Unused().double()
    explainer = igfast.LayerIntegratedGradients(model, model.aside)
    assert not explainer.attribute(SMALL, target=0, grad_kwargs={"allow_unused": True}).any()
