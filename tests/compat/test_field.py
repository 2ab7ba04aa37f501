"""What people do with Captum: public uses and bug reports, in small programs of our own."""

import subprocess
import sys

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum._utils.gradient import compute_gradients
from torch import nn

import igfast
from tests import models
from tests.oracle import relative_difference

X = torch.randn(3, 6, dtype=torch.float64)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()


def pair(explainer, **options):
    """What Captum's class gives and what igfast's does, of explainers made by a function of a module."""
    return tuple(explainer(library).attribute(X, target=1, n_steps=9, **options) for library in (captum.attr, igfast))


def with_graph(forward_fn, inputs, target_ind=None, additional_forward_args=None):
    with torch.autograd.set_grad_enabled(True):
        outputs = forward_fn(*inputs)[:, target_ind]
        return torch.autograd.grad(outputs.sum(), inputs, create_graph=True)


def test_attribution_priors_train_the_model():
    """Attributions in the loss: a gradient function that keeps its graph."""

    def gradients_of_weights(library):
        model = network()
        explainer = library.IntegratedGradients(model)
        explainer.gradient_func = with_graph
        explainer.attribute(X, target=1, n_steps=5).square().sum().backward()
        return tuple(parameter.grad for parameter in model.parameters() if parameter.grad is not None)

    theirs, ours = map(gradients_of_weights, (captum.attr, igfast))
    assert len(theirs) == 3  # all but the last bias
    assert relative_difference(ours, theirs) == 0


def test_layer_attributions_with_a_graph():
    def gradients_of_weights(library):
        model = network()
        explainer = library.LayerIntegratedGradients(model, model[0])
        attributions = explainer.attribute(X, target=1, n_steps=5, grad_kwargs={"create_graph": True})
        attributions.square().sum().backward()
        return model[2].weight.grad

    theirs, ours = map(gradients_of_weights, (captum.attr, igfast))
    assert relative_difference(ours, theirs) == 0


def test_what_is_left_to_captum_is_in_the_report():
    explainer = igfast.IntegratedGradients(network())
    explainer.gradient_func = with_graph
    _, report = explainer.attribute(X, target=1, return_report=True)
    assert report.notes == ("computed by Captum's own code: gradient_func was replaced",)
    assert "gradient_func was replaced" in str(report)
    attributions, delta, report = explainer.attribute(X, target=1, return_convergence_delta=True, return_report=True)
    assert attributions.shape == X.shape
    assert delta.shape == (len(X),)
    assert report.notes
    with pytest.raises(igfast.ArgumentError, match="'trapezoid' is not one of Captum's rules"):
        explainer.attribute(X, target=1, method="trapezoid")
    explainer = igfast.IntegratedGradients(network(), lean=True)
    explainer.gradient_func = with_graph
    with pytest.raises(igfast.LeanError, match="gradient_func was replaced"):
        explainer.attribute(X, target=1)
    explainer.gradient_func = compute_gradients
    assert explainer.attribute(X, target=1).shape == X.shape


def test_a_subclass_that_overrides_how_captum_attributes():
    def made(library):
        class Mine(library.IntegratedGradients):
            def _attribute(self, *args, **kwargs):
                return tuple(part.clamp(min=0) for part in super()._attribute(*args, **kwargs))

        return Mine(network())

    theirs, ours = pair(made)
    assert float(ours.min()) == 0
    assert relative_difference(ours, theirs) == 0
    theirs, ours = pair(made, internal_batch_size=3)
    assert relative_difference(ours, theirs) == 0


def test_a_delta_is_that_of_compute_convergence_delta():
    for baseline in (0, torch.randn(1, 6, dtype=torch.float64), torch.randn_like(X)):
        explainer = igfast.IntegratedGradients(network().float())
        x, start = X.float(), baseline if isinstance(baseline, int) else baseline.float()
        attributions, delta = explainer.attribute(x, start, target=[0, 2, 1], return_convergence_delta=True)
        again = explainer.compute_convergence_delta(attributions, start, x, target=[0, 2, 1])
        assert torch.equal(delta, again)
        theirs = captum.attr.IntegratedGradients(network().float())
        assert torch.allclose(again, theirs.compute_convergence_delta(attributions, start, x, [0, 2, 1]), atol=1e-6)


class Reused(nn.Module):
    """A module that is called twice, as the activation of a residual block."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.relu = nn.Linear(6, 6).double(), nn.Linear(6, 6).double(), nn.ReLU()

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))) + x)


def test_a_neuron_in_a_module_that_is_called_twice_is_an_error():
    model = Reused()
    with pytest.raises(igfast.LayerError, match="called more than once"):
        igfast.NeuronIntegratedGradients(model, model.relu).attribute(X, 2)


def test_a_neuron_selector_that_sums_over_the_batch():
    model = network()
    theirs, ours = (
        library.NeuronIntegratedGradients(model, model[0]).attribute(
            X, lambda value: value[:, :2].square().sum(), internal_batch_size=3
        )
        for library in (captum.attr, igfast)
    )
    assert relative_difference(ours, theirs) <= 1e-7


def test_inputs_with_different_numbers_of_rows_have_a_delta():
    def forward(a, b):
        return a.sin() + b[::2].cos() * a

    inputs = torch.randn(2, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    got, delta = igfast.IntegratedGradients(forward).attribute(inputs, target=1, return_convergence_delta=True)
    wanted = captum.attr.IntegratedGradients(forward).attribute(inputs, target=1, internal_batch_size=2)
    assert relative_difference(got, wanted) <= 1e-7
    assert delta.shape == (2,) or delta.shape == (1,)
    assert float(delta.abs().max()) < 1e-6


@pytest.mark.parametrize("lean", [0, 1, "on", None])
def test_lean_is_a_truth_value_or_auto(lean):
    with pytest.raises(igfast.ArgumentError, match=r'lean must be "auto", True or False; got'):
        igfast.IntegratedGradients(network(), lean=lean)


@pytest.mark.parametrize("budget", [np.int64(2**30), "1073741824", "1GiB"])
def test_budgets_of_numpy_and_of_environment_variables(budget):
    _, report = igfast.IntegratedGradients(network(), memory_budget=budget).attribute(X, target=1, return_report=True)
    assert report.budget_bytes == 2**30


@pytest.mark.parametrize("make", [
    lambda f: igfast.IntegratedGradients(f),
    lambda f: igfast.LayerIntegratedGradients(f, nn.ReLU()),
    lambda f: igfast.NeuronIntegratedGradients(f, nn.ReLU()),
])  # fmt: skip
def test_what_cannot_be_called_is_refused_at_once(make):
    with pytest.raises(igfast.ArgumentTypeError, match="forward_func must be callable; got a str"):
        make("text")


def test_meta_inputs_for_a_model_that_has_numbers():
    with pytest.raises(igfast.InputError, match="the inputs are on the meta device and hold no numbers"):
        igfast.IntegratedGradients(network()).attribute(X.to("meta"), target=1)


def test_a_model_that_maps_over_its_rows():
    layer = network()

    def forward(x):
        return torch.func.vmap(lambda row: F.softmax(layer(row), dim=0))(x)

    got, report = igfast.IntegratedGradients(forward).attribute(X, target=1, return_report=True)
    wanted = igfast.IntegratedGradients(lambda x: F.softmax(layer(x), dim=1), lean=False).attribute(X, target=1)
    assert relative_difference(got, wanted) <= 1e-12
    assert ("linear", "a transform of torch.func or a forward-mode derivative") in report.lean.plain


def test_a_model_that_failed_lean_execution_once_is_lean_for_other_inputs():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = network()

        def forward(self, x):
            h = x * 1
            if x.shape[1] > 6:
                (grad,) = torch.autograd.grad((h**2).sum(), x, create_graph=True)
                h = grad[:, :6]
            return self.layer(h)

    explainer = igfast.IntegratedGradients(Sometimes())
    with pytest.warns(igfast.IgfastWarning, match="lean execution does not fit this model"):
        _, report = explainer.attribute(torch.randn(2, 7).double(), target=1, return_report=True)
    assert not report.lean
    _, report = explainer.attribute(X, target=1, return_report=True)
    assert report.lean


def test_a_script_that_cannot_be_imported_says_why(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import there_is_no_such_module\n")
    done = subprocess.run(
        [sys.executable, "-m", "igfast", "run", str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "there_is_no_such_module" in done.stderr


def test_a_large_model_that_is_explained_inside_of_noise_tunnel():
    model = models.convnet()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.manual_seed(0)
    wanted = captum.attr.NoiseTunnel(captum.attr.IntegratedGradients(model)).attribute(x, target=1, nt_samples=3)
    torch.manual_seed(0)
    got = captum.attr.NoiseTunnel(igfast.IntegratedGradients(model)).attribute(x, target=1, nt_samples=3)
    assert relative_difference(got, wanted) <= 1e-6
