"""NeuronIntegratedGradients against a naive loop and against Captum, and what it refuses."""

from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import captum.attr
import pytest
import torch
from torch import nn

import igfast
from tests import models
from tests.attr import layer_models
from tests.attr.layer_models import naive
from tests.oracle import relative_difference

X = torch.randn(3, 3, 8, 8, dtype=torch.float64)

SELECTORS = {
    "tuple": ((2, 3, 4), lambda h: h[:, 2, 3, 4]),
    "negative": ((-1, 0, -2), lambda h: h[:, -1, 0, -2]),
    "slices": ((slice(0, 2), 3, slice(None)), lambda h: h[:, 0:2, 3, :].sum((1, 2))),
    "function": (lambda h: h.amax((1, 2, 3)), lambda h: h.amax((1, 2, 3))),
}


@pytest.mark.parametrize("size", [None, 1, 2, 7])
@pytest.mark.parametrize("at_input", [False, True])
@pytest.mark.parametrize("name", SELECTORS)
def test_parity(name, at_input, size):
    network = models.convnet()
    selector, select = SELECTORS[name]
    wanted = naive(lambda x: select(network[:1](x) if at_input else network[:2](x)), (X,), (X * 0,), 7)
    options = {"n_steps": 7, "attribute_to_neuron_input": at_input}
    explainer = igfast.NeuronIntegratedGradients(network, network[1], lean=True)
    got = explainer.attribute(X, selector, internal_batch_size=size, **options)
    assert relative_difference(got, wanted[0]) <= 1e-12
    captums = captum.attr.NeuronIntegratedGradients(network, network[1]).attribute(X, selector, **options)
    assert relative_difference(got, captums) <= 1e-7
    assert not network[1]._forward_hooks


def test_an_int_selects_from_a_layer_of_two_dimensions():
    network, x = models.mlp(), torch.randn(4, 3, dtype=torch.float64)
    got = igfast.NeuronIntegratedGradients(network, network[1]).attribute(x, 5, x * 0 + 0.1, n_steps=12)
    wanted = captum.attr.NeuronIntegratedGradients(network, network[1]).attribute(x, 5, x * 0 + 0.1, n_steps=12)
    assert relative_difference(got, wanted) <= 1e-7


def test_a_function_takes_the_tuple_of_a_layer_with_several_tensors():
    network, x = layer_models.Tuples(), torch.randn(3, 6, dtype=torch.float64)
    results = [
        library.NeuronIntegratedGradients(network, network.pair).attribute(x, lambda ab: ab[0][:, 1] * ab[1][:, 2])
        for library in (igfast, captum.attr)
    ]
    assert relative_difference(*results) <= 1e-7


def test_what_comes_after_the_layer_is_computed_without_a_graph():
    """Not left out: what is around a model may have something to do after its forward pass."""
    reached = []
    network = models.mlp()
    network[2].register_forward_hook(lambda _, args, output: reached.append(output.requires_grad))
    igfast.NeuronIntegratedGradients(network, network[1]).attribute(torch.randn(2, 3, dtype=torch.float64), 0)
    assert set(reached) == {False}


class Product(nn.Module):
    """Two inputs and a scale per example, multiplied in a layer; then something else."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Bilinear(3, 4, 5).double()

    def forward(self, a, b, scale):
        return self.layer(a * scale, b).sum()


def test_several_inputs_and_additional_arguments():
    torch.manual_seed(0)
    network = Product()
    inputs = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    scale = torch.tensor([[2.0], [3.0]], dtype=torch.float64)
    results = [
        library.NeuronIntegratedGradients(network, network.layer).attribute(inputs, 4, (0, 0.5), scale, n_steps=5)
        for library in (igfast, captum.attr)
    ]
    assert relative_difference(*results) <= 1e-7


@pytest.mark.parametrize(
    ("selector", "error", "text"),
    [
        (99, igfast.SelectorError, "has 1 indices, but the layer's output is a float64 tensor of shape"),
        ((99, 0, 0), igfast.SelectorError, "out of range for dimension 1 of the layer's output, which has size 6"),
        ((0, 0), igfast.SelectorError, "neuron_selector has 2 indices"),
        ("0", igfast.SelectorTypeError, "must be an int, a tuple of ints and slices, or a function; got a str"),
        (lambda h: h, igfast.SelectorError, "must return a tensor with one number per example"),
    ],
)
def test_bad_selectors(selector, error, text):
    network = models.convnet()
    with pytest.raises(error, match=text):
        igfast.NeuronIntegratedGradients(network, network[1]).attribute(X, selector)
    assert not network[1]._forward_hooks


def test_a_layer_of_several_tensors_needs_a_function():
    network = layer_models.Tuples()
    with pytest.raises(igfast.SelectorError, match="is 2 tensors: pass a function"):
        igfast.NeuronIntegratedGradients(network, network.pair).attribute(torch.randn(2, 6).double(), 0)


def test_a_layer_that_does_not_depend_on_the_input():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3).double()

        def forward(self, x):
            return self.layer(torch.ones_like(x)) + x

    network = Constant()
    with pytest.raises(igfast.InputError, match="is not used"):
        igfast.NeuronIntegratedGradients(network, network.layer).attribute(torch.randn(2, 3).double(), 0)


def test_ten_threads_share_a_model_and_an_instance():
    network = models.convnet()
    explainer = igfast.NeuronIntegratedGradients(network, network[1])
    tasks = [(torch.randn(2, 3, 8, 8, dtype=torch.float64), (i % 4, i % 3, 2)) for i in range(10)]

    def attribute(task):
        return explainer.attribute(*task, n_steps=15, internal_batch_size=4)

    serial = [attribute(task) for task in tasks]
    with ThreadPoolExecutor(10) as threads:
        parallel = list(threads.map(attribute, tasks))
    assert all(torch.equal(a, b) for a, b in zip(serial, parallel, strict=True))
    assert not network[1]._forward_hooks


def test_threads_of_every_kind_share_a_model():
    network, x = models.convnet(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    calls = [
        lambda: igfast.IntegratedGradients(network).attribute(x, target=1, n_steps=15),
        lambda: igfast.LayerIntegratedGradients(network, network[1]).attribute(x, target=1, n_steps=15),
        lambda: igfast.NeuronIntegratedGradients(network, network[1]).attribute(x, (1, 2, 2), n_steps=15),
    ] * 4
    serial = [call() for call in calls]
    with ThreadPoolExecutor(12) as threads:
        parallel = list(threads.map(lambda call: call(), calls))
    assert all(relative_difference(a, b) <= 1e-12 for a, b in zip(serial, parallel, strict=True))


class Forces(nn.Module):
    """Returns the gradient of an energy, computed behind its layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(6, 5).double(), nn.Linear(5, 1).double()

    def forward(self, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.clone().requires_grad_()
            energy = self.head(torch.tanh(self.layer(x))).sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]


ROWS = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_models_that_differentiate_behind_the_layer():
    network = Forces()
    with pytest.warns(igfast.IgfastWarning, match="differentiates inside its forward pass"):
        got = igfast.NeuronIntegratedGradients(network, network.layer).attribute(ROWS, 2)
    wanted = captum.attr.NeuronIntegratedGradients(network, network.layer).attribute(ROWS, 2)
    assert relative_difference(got, wanted) <= 1e-7


class Slopes(Forces):
    """Returns the gradient of an energy to what its layer gives out."""

    def forward(self, x):
        h = self.layer(x)
        with torch.enable_grad():
            h = h if h.requires_grad else h.clone().requires_grad_()
            return torch.autograd.grad(self.head(torch.tanh(h)).sum(), h, create_graph=True)[0]


def test_layers_of_models_that_differentiate_behind_them():
    network = Slopes()
    with pytest.warns(igfast.IgfastWarning, match="differentiates inside its forward pass"):
        got = igfast.LayerIntegratedGradients(network, network.layer).attribute(ROWS, target=1)
    wanted = captum.attr.LayerIntegratedGradients(network, network.layer).attribute(ROWS, target=1)
    assert relative_difference(got, wanted) <= 1e-6


Stats = namedtuple("Stats", "mean spread count")


class Encoder(nn.Module):
    """Gives out a named tuple, one part of which holds integers."""

    def forward(self, x):
        return Stats(x.tanh(), x.square(), (x > 0).sum(1))


def test_layers_that_give_out_named_tuples_and_integers():
    encoder, head = Encoder(), nn.Linear(6, 2).double()
    network = nn.Sequential(nn.Linear(6, 6).double(), encoder)
    got, wanted = (
        library.NeuronIntegratedGradients(network, encoder).attribute(ROWS, lambda s: s[0][:, 1] + s[1][:, 0])
        for library in (igfast, captum.attr)
    )
    assert relative_difference(got, wanted) <= 1e-7

    class Floats(Encoder):
        def forward(self, x):
            return Stats(x.tanh(), x.square(), x.cos())

    floats = Floats()

    def forward(x):
        found = floats(x)
        return head(found.mean + found.spread * found.count)

    def by_index(x):
        found = floats(x)
        return head(found[0] + found[1] * found[2])

    got = igfast.LayerIntegratedGradients(forward, floats).attribute(ROWS, target=1)
    theirs = captum.attr.LayerIntegratedGradients(by_index, floats).attribute(
        ROWS, target=1
    )  # which puts a tuple there
    assert relative_difference(got, theirs) <= 1e-6


def test_an_index_for_a_layer_that_pools_all_places():
    pool = nn.AdaptiveAvgPool2d(1)
    network = nn.Sequential(models.convnet()[0], nn.Tanh(), pool)
    got, wanted = (
        library.NeuronIntegratedGradients(network, pool).attribute(X, 2) for library in (igfast, captum.attr)
    )
    assert relative_difference(got, wanted) <= 1e-7
    with pytest.raises(igfast.SelectorError, match="neuron_selector has 1 indices"):
        igfast.NeuronIntegratedGradients(network, network[1]).attribute(X, 2)


def test_the_result_has_a_graph_to_the_inputs_as_captums():
    network, found = models.mlp(), []
    for library in (igfast, captum.attr):
        x = torch.full((2, 3), 0.7, dtype=torch.float64, requires_grad=True)
        library.NeuronIntegratedGradients(network, network[1]).attribute(x, 5).square().sum().backward()
        found.append(x.grad)
    assert relative_difference(*found) <= 1e-6


def test_layers_that_no_neuron_is_selected_from():
    lstm = nn.LSTM(6, 4).double()
    with pytest.raises(igfast.LayerError, match="a neuron is selected from tensors, or from a flat tuple of tensors"):
        igfast.NeuronIntegratedGradients(lambda x: lstm(x)[0], lstm).attribute(ROWS, 1)

    class Total(nn.Module):
        def forward(self, x):
            return x.sum()

    total = Total()
    with pytest.raises(igfast.SelectorError, match="with no examples: pass a function that selects"):
        igfast.NeuronIntegratedGradients(lambda x: total(x).expand(len(x)), total).attribute(ROWS, 1)
