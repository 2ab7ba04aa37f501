"""Models whose outputs lack a dimension, a graph or floating numbers, or that do not fit in memory at once."""

import gc
import weakref

import captum.attr
import pytest
import torch
from torch import nn

import igfast
from tests.oracle import relative_difference

LIBRARIES = (captum.attr, igfast)


class Squeezes(nn.Module):
    """Drops the dimension of a single example, by a `squeeze` that is meant for the places of an image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool, self.head = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.pool(self.conv(x).relu()).squeeze()).softmax(-1)


@pytest.mark.parametrize("selector", [3, lambda values: values[:, 3]], ids=["index", "function"])
@pytest.mark.parametrize(("n", "size"), [(1, None), (1, 1), (2, 1), (2, None)])
def test_neurons_of_models_that_drop_the_dimension_of_a_single_row(n, size, selector):
    model, x = Squeezes().double().eval(), torch.randn(n, 3, 8, 8, dtype=torch.float64)
    wanted = captum.attr.NeuronIntegratedGradients(model, model.head).attribute(x, selector)
    explainer = igfast.NeuronIntegratedGradients(model, model.head)
    for _ in range(2):  # the second call knows the dimensions
        got = explainer.attribute(x, selector, internal_batch_size=size)
        assert relative_difference(got, wanted) <= 1e-6


class Auxiliary(nn.Module):
    """A head whose values go nowhere, called after the output is there."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head, self.aside = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 5)

    def forward(self, x):
        values = self.trunk(x).tanh()
        output = self.head(values)
        self.aside(values)
        return output


def test_a_layer_after_the_output():
    model, x = Auxiliary(), torch.randn(2, 3)
    explainer = igfast.LayerIntegratedGradients(model, model.aside)
    got = explainer.attribute(x, target=0, grad_kwargs={"materialize_grads": True})
    assert got.shape == (2, 5)
    assert not got.any()
    with pytest.raises(igfast.InputError, match="does not influence the output"):
        explainer.attribute(x, target=0)


@pytest.mark.parametrize("output", [lambda x: (x.sum(1) > 0).long(), lambda x: x.sum(1) > 0])
def test_outputs_without_a_gradient_have_no_tolerance_either(output):
    explainer, x = igfast.IntegratedGradients(output), torch.randn(2, 3)
    for how in ({}, {"tolerance": 0.05}):
        with pytest.raises(igfast.OutputError):
            explainer.attribute(x, **how)


def test_a_column_for_each_row_of_the_batch():
    explainer = igfast.IntegratedGradients(lambda x: (x @ x.T).tanh())
    x = torch.randn(4, 6, dtype=torch.float64)
    with pytest.warns(igfast.IgfastWarning, match="as a whole"):
        got = explainer.attribute(x, target=2, internal_batch_size=1, tolerance=0.01)
    wanted = captum.attr.IntegratedGradients(lambda x: (x @ x.T).tanh())
    wanted = wanted.attribute(x, target=2, n_steps=500, internal_batch_size=4)
    assert relative_difference(got, wanted) <= 0.01
    with pytest.raises(igfast.TargetError, match="out of range"):
        igfast.IntegratedGradients(lambda x: x.tanh()).attribute(x, target=9, internal_batch_size=1, tolerance=0.01)


class FitsFour(nn.Module):
    """A model that memory holds four rows of, after the first `n_fits` calls."""

    def __init__(self, n_fits=0):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head, self.n_fits = nn.BatchNorm1d(6), nn.Linear(6, 2), n_fits
        self.double()

    def forward(self, x):
        self.n_fits -= 1
        if len(x) > 4 and self.n_fits < 0:
            raise MemoryError
        return self.head(self.norm(x).tanh())


X = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize("size", [None, 4])
def test_examples_that_depend_on_each_other_are_not_split_for_lack_of_memory(size):
    explainer = igfast.IntegratedGradients(FitsFour().train())
    with pytest.raises(igfast.IgfastMemoryError, match=r"\(1, 8, 6\), does not fit"):
        explainer.attribute(X, target=1, internal_batch_size=size)
    model = FitsFour().eval()
    wanted = captum.attr.IntegratedGradients(nn.Sequential(model.norm, nn.Tanh(), model.head))
    got = igfast.IntegratedGradients(model).attribute(X, target=1, internal_batch_size=size)
    assert relative_difference(got, wanted.attribute(X, target=1)) <= 1e-6


@pytest.mark.filterwarnings("ignore:out of memory")
def test_a_layers_values_are_not_read_in_parts_that_depend_on_each_other():
    model = FitsFour().train()
    with pytest.raises(igfast.LayerError, match="depend on the others in the batch"):
        igfast.LayerIntegratedGradients(model, model.norm).attribute(X, target=1)
    model = FitsFour().eval()
    got = igfast.LayerIntegratedGradients(model, model.norm).attribute(X, target=1)
    whole = nn.Sequential(model.norm, nn.Tanh(), model.head)
    wanted = captum.attr.LayerIntegratedGradients(whole, model.norm).attribute(X, target=1)
    assert relative_difference(got, wanted) <= 1e-6


class FitsOne(nn.Module):
    def forward(self, x):
        if len(x) > 1:
            raise MemoryError
        return x.tanh()


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.filterwarnings("ignore:the inputs do not fit")
@pytest.mark.filterwarnings("ignore:path points are taken to be independent")
def test_what_cannot_be_compared_is_said():
    with pytest.warns(igfast.IgfastWarning, match="path points are taken to be independent of each other"):
        igfast.IntegratedGradients(FitsOne()).attribute(X, target=1)
    network = nn.Sequential(nn.Identity(), FitsOne())
    with pytest.warns(igfast.IgfastWarning, match="examples are taken to be independent of each other"):
        igfast.LayerIntegratedGradients(network, network[0]).attribute(X, target=1)


@pytest.mark.parametrize("of", ["inputs", "layer"])
def test_outputs_are_let_go_of_before_the_first_gradient(of):
    """The outputs at the inputs and at the baselines may be the largest tensors of a call: logits of all places."""
    seen, alive = [], []

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 100)
            self.double()

        def forward(self, x):
            output = self.head(self.layer(x).tanh())
            gc.collect()
            if output.requires_grad:
                alive.append(sum(one() is not None for one in seen))
            else:
                seen.append(weakref.ref(output))
            return output

    model = Wide()
    if of == "layer":
        explainer = igfast.LayerIntegratedGradients(model, model.layer)
    else:
        explainer = igfast.IntegratedGradients(model)
    explainer.attribute(X, target=1, return_convergence_delta=True)
    assert seen
    assert alive
    assert alive[0] == 0
