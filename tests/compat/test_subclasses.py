"""Subclasses, replaced parts and pickles of explainers, as code that was written for Captum has them."""

import pickle
from abc import ABC

import captum.attr
import numpy as np
import pytest
import torch
from captum._utils.gradient import compute_gradients
from captum.attr import IntegratedGradients as ImportedHere
from captum.attr._utils.attribution import GradientAttribution
from torch import nn

import igfast
from tests import models
from tests.oracle import relative_difference

LIBRARIES = (captum.attr, igfast)
X = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def explainer_of(library, kind, network):
    if kind == "layer":
        return library.LayerIntegratedGradients(network, network[0])
    return library.IntegratedGradients(network)


class Twice(captum.attr.IntegratedGradients):
    def _attribute(self, *args, **kwargs):
        return tuple(2 * one for one in super()._attribute(*args, **kwargs))


def with_another_ig(library, network):
    explainer = library.LayerIntegratedGradients(network, network[0])
    explainer.ig = Twice(network)
    return explainer


def with_another_gradient(library, network):
    class Tripled(library.LayerIntegratedGradients):
        def _make_gradient_func(self, *args):
            gradient = super()._make_gradient_func(*args)
            return lambda *args, **kwargs: tuple(3 * one for one in gradient(*args, **kwargs))

    return Tripled(network, network[0])


@pytest.mark.parametrize("make", [with_another_ig, with_another_gradient])
def test_a_layer_method_with_replaced_parts_is_left_to_captum(make):
    network = models.mlp()
    theirs, ours = (make(library, network).attribute(X, target=0) for library in LIBRARIES)
    assert torch.equal(ours, theirs)
    explainer = make(igfast, network)
    _, report = explainer.attribute(X, target=0, return_report=True)
    assert report.notes[0].startswith("computed by Captum's own code")
    with pytest.raises(igfast.ArgumentError, match="left to Captum"):
        explainer.attribute_targets(X, [0, 1])


@pytest.mark.parametrize("kind", ["inputs", "layer"])
def test_an_overridden_delta_is_called(kind):
    network, found = models.mlp(), []
    for library in LIBRARIES:
        base = type(explainer_of(library, kind, network))

        class Own(base):
            def compute_convergence_delta(self, *args, **kwargs):
                return super().compute_convergence_delta(*args, **kwargs).abs() + 100

        made = Own(network, network[0]) if kind == "layer" else Own(network)
        found.append(made.attribute(X, target=0, return_convergence_delta=True))
    (theirs, their_delta), (ours, our_delta) = found
    assert relative_difference(ours, theirs) <= 1e-6
    torch.testing.assert_close(our_delta, their_delta, rtol=0, atol=1e-5)


def test_the_delta_of_embeddings_at_token_ids():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 2)).double()
    ids = torch.tensor([[3, 5]])
    attributions = captum.attr.LayerIntegratedGradients(network, network[0]).attribute(ids, target=1)
    theirs, ours = (
        library.IntegratedGradients(network).compute_convergence_delta(2 * attributions, 0, ids, target=1)
        for library in LIBRARIES
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_the_delta_of_a_layer_leaves_statistics_as_they_were():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().train()
    explainer = igfast.LayerIntegratedGradients(network, network[0])
    attributions, delta = explainer.attribute(X, target=0, internal_batch_size=2, return_convergence_delta=True)
    before = network[1].running_mean.clone()
    own = explainer.compute_convergence_delta(attributions, torch.zeros_like(X), X, target=0)
    assert torch.equal(network[1].running_mean, before)
    torch.testing.assert_close(own.sum(), delta.sum())


class Direct(igfast.IntegratedGradients):
    """A subclass that calls the constructor of Captum's base class alone."""

    def __init__(self, forward_func):
        GradientAttribution.__init__(self, forward_func)
        self._multiply_by_inputs = True


def test_another_constructor():
    network = models.mlp()
    wanted = igfast.IntegratedGradients(network).attribute(X, target=0)
    assert torch.equal(Direct(network).attribute(X, target=0), wanted)


def test_a_pickle_of_captums_that_is_loaded_under_a_patch():
    network = models.mlp()
    data = pickle.dumps(ImportedHere(network))
    with igfast.patch_captum():
        loaded = pickle.loads(data)
        assert type(loaded) is igfast.IntegratedGradients
        assert torch.equal(loaded.attribute(X, target=0), igfast.IntegratedGradients(network).attribute(X, target=0))


def test_isinstance_under_a_patch():
    network = models.mlp()
    before, of_subclass = ImportedHere(network), Twice(network)
    other = captum.attr.LayerIntegratedGradients(network, network[0])
    with igfast.patch_captum():
        base = captum.attr.IntegratedGradients
        assert base is igfast.IntegratedGradients
        assert isinstance(before, base)
        assert isinstance(of_subclass, base)
        assert issubclass(Twice, base)
        assert not isinstance(other, base)
        assert not isinstance(before, captum.attr.LayerIntegratedGradients)
        assert not isinstance(before, Direct)
    assert not isinstance(before, igfast.IntegratedGradients)


class CallsItsBase(ImportedHere):
    def __init__(self, forward_func):
        ImportedHere.__init__(self, forward_func)


def test_a_subclass_that_calls_captums_class_by_its_name():
    network = models.mlp()
    with igfast.patch_captum() as patch:
        assert ImportedHere is not igfast.IntegratedGradients
        made = CallsItsBase(network)
    assert f"{__name__}.ImportedHere: a subclass there may call Captum's class by this name" in patch.not_replaced
    assert relative_difference(made.attribute(X, target=0), ImportedHere(network).attribute(X, target=0)) == 0


SELECTORS = [
    np.unravel_index(13, (3, 3, 3)),
    [1, 1, 1],
    tuple(torch.tensor([1, 1, 1])),
    (slice(0, 2),),
    (slice(0, 2), 1),
]


@pytest.mark.parametrize("selector", SELECTORS, ids=str)
def test_selectors_of_neurons(selector):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh()).double()
    x = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    theirs, ours = (
        library.NeuronIntegratedGradients(network, network[1]).attribute(x, selector) for library in LIBRARIES
    )
    assert relative_difference(ours, theirs) <= 1e-6


def test_equal_selectors_are_one_kind_of_call():
    calls = []
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    network.register_forward_hook(lambda *_: calls.append(1))
    explainer, counts = igfast.NeuronIntegratedGradients(network, network[1]), []
    for selector in (1, (1,), np.int64(1), [1]):
        calls.clear()
        explainer.attribute(X, selector)
        counts.append(len(calls))
    assert counts[0] > counts[1] == counts[2] == counts[3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("of", ["inputs", "neuron", "samples"])
def test_baselines_of_the_models_wider_dtype(dtype, of):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double()
    x, baseline = torch.tensor([[1, 2, 3], [3, 1, 0]]).to(dtype), torch.rand(1, 3, dtype=torch.float64)

    def attributed(library):
        torch.manual_seed(0)
        np.random.seed(0)
        if of == "neuron":
            return library.NeuronIntegratedGradients(network, network[1]).attribute(x, 1, baseline)
        if of == "samples":
            return library.GradientShap(network).attribute(x.float(), baseline.repeat(3, 1), target=0)
        return library.IntegratedGradients(network).attribute(x, baseline, target=0)

    theirs, ours = attributed(captum.attr), attributed(igfast)
    assert ours.dtype is theirs.dtype is torch.float64
    assert relative_difference(ours, theirs) <= 1e-6


def test_a_wider_baseline_does_not_widen_a_result_with_a_graph():
    network, x = nn.Linear(3, 2), torch.ones(1, 3, requires_grad=True)
    explainer = igfast.IntegratedGradients(network)
    start = torch.full((1, 3), 0.5, dtype=torch.float64)
    with_graph, without = (explainer.attribute(one, start, target=0) for one in (x, x.detach()))
    assert with_graph.dtype is without.dtype is torch.float32
    assert with_graph.requires_grad
    torch.testing.assert_close(with_graph.detach(), without)


def test_unsigned_integers_beside_an_input_with_a_graph_do_not_wrap():
    x, pixels = torch.ones(1, 3, requires_grad=True), torch.tensor([[1, 2, 3]], dtype=torch.uint8)
    explainer = igfast.IntegratedGradients(lambda a, b: a.sum(1) + b.square().sum(1))
    with_graph, without = (explainer.attribute((one, pixels), (0.0, 5))[1] for one in (x, x.detach()))
    torch.testing.assert_close(with_graph.detach(), without)
    torch.testing.assert_close(without, torch.tensor([[1.0 - 25, 4.0 - 25, 9.0 - 25]]))


def test_options_that_captums_code_does_not_have():
    network = models.mlp()
    replaced = lambda *args, **kwargs: compute_gradients(*args, **kwargs)  # noqa: E731
    explainer = igfast.IntegratedGradients(network, memory_budget="1GiB")
    explainer.gradient_func = replaced
    with pytest.warns(igfast.IgfastWarning, match="memory_budget has no effect"):
        explainer.attribute(X, target=0)
    sampled = igfast.GradientShap(network, lean=True)
    sampled.gradient_func = replaced
    with pytest.raises(igfast.LeanError):
        sampled.attribute(X, torch.zeros_like(X), target=0)


PRIVATE = ["_options", "_run", "_ends", "_evaluator", "_attributed", "_forward", "_layers", "_explainer", "_meta"]
KINDS = {
    "IntegratedGradients": lambda e: e.attribute(X, target=0, n_steps=5),
    "LayerIntegratedGradients": lambda e: e.attribute(X, target=0, n_steps=5),
    "NeuronIntegratedGradients": lambda e: e.attribute(X, 1, n_steps=5),
    "GradientShap": lambda e: e.attribute(X, X * 0, target=0),
    "LayerGradientShap": lambda e: e.attribute(X, X * 0, target=0),
    "NeuronGradientShap": lambda e: e.attribute(X, 1, X * 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_a_subclass_are_its_own(kind):
    network, found = models.mlp(), []
    for library in LIBRARIES:
        base = getattr(library, kind)
        mine = type("Mine", (base,), {name: (lambda self, one: one) for name in PRIVATE})
        explainer = mine(network) if kind[0] in "IG" else mine(network, network[0])
        vars(explainer).update(dict.fromkeys(PRIVATE[:3], "mine"))
        np.random.seed(0)
        torch.manual_seed(0)
        found.append(KINDS[kind](explainer))
    assert relative_difference(*reversed(found)) <= 1e-6


class Interface(ABC):  # noqa: B024
    def explain(self, x, target):
        return self.attribute(x, target=target), "explained"

    def attribute_targets(self, x):
        return "its own"


def test_methods_that_captums_classes_lack_yield_to_other_bases():
    mine = type("Mine", (igfast.IntegratedGradients, Interface), {})(models.mlp())
    attributions, text = mine.explain(X, 1)
    assert text == "explained"
    assert mine.attribute_targets(X) == "its own"
    assert torch.equal(attributions, igfast.IntegratedGradients(models.mlp()).attribute(X, target=1))
    assert igfast.IntegratedGradients(models.mlp()).explain(X, target=1).target == 1


def test_a_function_that_is_set_later():
    network = models.mlp()
    for kind, call in KINDS.items():
        explainer = getattr(igfast, kind)(None, *([] if kind[0] in "IG" else [network[0]]))
        explainer.forward_func = network
        call(explainer)
    with pytest.raises(igfast.ArgumentTypeError, match="forward_func must be callable"):
        igfast.IntegratedGradients(None).attribute(X, target=0)
    with pytest.raises(igfast.ArgumentTypeError, match="forward_func must be callable"):
        igfast.LayerIntegratedGradients("model", None)


class Before(captum.attr.IntegratedGradients):
    """Defined before a patch, and calls its base by the module's name."""

    def __init__(self, forward_func):
        captum.attr.IntegratedGradients.__init__(self, forward_func)

    def attribute(self, *args, **kwargs):
        return 2 * captum.attr.IntegratedGradients.attribute(self, *args, **kwargs)

    def delta(self, *args):
        return captum.attr.IntegratedGradients.compute_convergence_delta(self, *args)


class BeforeSampled(captum.attr.GradientShap):
    def __init__(self, forward_func):
        captum.attr.GradientShap.__init__(self, forward_func)

    def attribute(self, *args, **kwargs):
        return captum.attr.GradientShap.attribute(self, *args, **kwargs)


def test_subclasses_from_before_a_patch_that_name_their_base():
    network = models.mlp()
    wanted = Before(network).attribute(X, target=0)
    np.random.seed(0)
    sampled = BeforeSampled(network).attribute(X, X * 0, target=0)
    with igfast.patch_captum():
        explainer = Before(network)
        assert torch.equal(explainer.attribute(X, target=0), wanted)
        torch.testing.assert_close(explainer.delta(wanted / 2, 0, X, 0), torch.zeros(2).double(), rtol=0, atol=1e-6)
        np.random.seed(0)
        assert torch.equal(BeforeSampled(network).attribute(X, X * 0, target=0), sampled)


def test_gradients_with_a_graph_of_a_replaced_autograd_are_captums(monkeypatch):
    grad, network = torch.autograd.grad, models.mlp()
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: grad(*args, **{**kwargs, "create_graph": True}))
    for kind, call in KINDS.items():
        found = []
        for library in LIBRARIES:
            np.random.seed(0)
            torch.manual_seed(0)
            found.append(call(getattr(library, kind)(network, *([] if kind[0] in "IG" else [network[0]]))))
        theirs, ours = found
        assert torch.equal(ours, theirs)
        assert ours.requires_grad is theirs.requires_grad is ("Shap" not in kind)


def test_a_replaced_function_of_captums_is_used(monkeypatch):
    module = captum.attr._core.integrated_gradients
    plain = module.approximation_parameters
    wanted = igfast.IntegratedGradients(models.mlp()).attribute(X, target=0)
    monkeypatch.setattr(module, "approximation_parameters", lambda method: (plain(method)[0], lambda n: [2 / n] * n))
    _, report = igfast.IntegratedGradients(models.mlp()).attribute(X, target=0, return_report=True)
    assert "approximation_parameters was replaced" in report.notes[0]
    monkeypatch.undo()
    assert torch.equal(igfast.IntegratedGradients(models.mlp()).attribute(X, target=0), wanted)
