"""What a call says about itself."""

import captum.attr
import pytest
import torch
from torch import nn
from torch.nn.utils import skip_init

import igfast
from tests import models
from tests.attr.layer_models import BiLSTM

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def report_of(function=None, **options):
    explainer = igfast.IntegratedGradients(function or models.convnet(), **options.pop("constructor", {}))
    return explainer.attribute(X, target=1, n_steps=options.pop("n_steps", 7), return_report=True, **options)[-1]


def test_it_comes_last():
    explainer = igfast.IntegratedGradients(models.convnet())
    alone = explainer.attribute(X, target=1)
    attributions, report = explainer.attribute(X, target=1, return_report=True)
    assert torch.equal(attributions, alone)
    assert isinstance(report, igfast.RunReport)
    attributions, delta, report = explainer.attribute(X, target=1, return_report=True, return_convergence_delta=True)
    assert delta.shape == (2,)
    assert isinstance(report, igfast.RunReport)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_up_to_float32_go_channels_last(dtype):
    explainer = igfast.IntegratedGradients(models.convnet().to(dtype))
    _, report = explainer.attribute(X.to(dtype), target=1, n_steps=7, return_report=True)
    assert report.channels_last == (dtype == torch.float32)


def test_layers_and_neurons_have_one():
    network, text = models.convnet(), BiLSTM()
    ids = torch.randint(0, 30, (2, 6))
    layer = igfast.LayerIntegratedGradients(text, text.embedding)
    _, delta, report = layer.attribute(ids, target=1, n_steps=7, return_convergence_delta=True, return_report=True)
    assert delta.shape == (2,)
    assert report.n_rows == 14
    neuron = igfast.NeuronIntegratedGradients(network, network[0])
    _, report = neuron.attribute(X, (1, 2, 3), n_steps=7, return_report=True)
    assert report.lean.swapped == {"conv2d": 1}


def test_what_was_done():
    report = report_of(internal_batch_size=4)
    assert report.n_rows == report.n_evaluations == 14
    assert report.chunks == {4: 3, 2: 1}
    assert not report.channels_last
    assert report.lean
    assert report.lean.swapped == {"conv2d": 4, "relu": 4, "avg_pool2d": 4, "linear": 4}
    assert report.lean.plain == {}
    assert report.device == "cpu"
    assert report.kernels == igfast.ops.build_info()["isa"]
    assert report.notes == ()
    assert 0 < report.seconds < 60
    assert 0 < report.peak_bytes < 2**24 < report.budget_bytes


def test_chunks_are_larger_for_a_model_of_many_weights():
    class Wide(nn.Module):
        """200 MiB that no chunk reads whole, and as much that it does, or that nobody does."""

        def __init__(self, is_heavy):
            super().__init__()
            self.first, self.unused = nn.Linear(2**18, 2), nn.LazyLinear(2)
            self.table = skip_init(nn.Embedding, 50 * 2**10, 2**10)
            self.more = skip_init(nn.Linear, 2**10, 50 * 2**10) if is_heavy else None
            self.tied = self.more

        def forward(self, x):
            return self.first((x * torch.ones(40, 1, 1)).mean(0))

    x = torch.randn(1, 2**18)  # 1 MiB, and 80 MiB within the model
    heavy = Wide(is_heavy=True)
    for function, largest in ((heavy, 4), (Wide(is_heavy=False), 2), (lambda x: heavy(x), 2)):
        assert max(igfast.IntegratedGradients(function).attribute(x, target=1, return_report=True)[1].chunks) == largest
    neuron = igfast.NeuronIntegratedGradients(heavy, heavy.first)
    assert max(neuron.attribute(x, 1, return_report=True)[1].chunks) == 2


def test_no_examples():
    report = igfast.IntegratedGradients(models.convnet()).attribute(X[:0], target=1, return_report=True)[-1]
    assert report.n_rows == report.n_evaluations == 0
    assert "none" in str(report)


def test_why_lean_execution_is_off():
    assert report_of(constructor={"lean": False}).lean.off_because == "lean=False"
    assert "is compiled" in report_of(torch.compile(models.convnet(), backend="eager")).lean.off_because

    class Differentiates(nn.Module):
        def forward(self, x):
            (grad,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
            return grad.flatten(1)

    with pytest.warns(igfast.IgfastWarning, match="lean execution does not fit"):
        report = report_of(Differentiates(), internal_batch_size=4)
    assert "differentiates inside its forward pass" in report.lean.off_because
    assert report.n_evaluations == 14  # the plain rerun of a chunk is not counted


def test_what_ran_plainly_and_why():
    with pytest.warns(igfast.IgfastWarning, match="depends on the others in its batch"):
        report = report_of(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).double().train())
    assert report.lean.plain == {("batch_norm", "batch norm in training mode"): 8}  # all steps at once, then each
    assert "  plain         8 x batch_norm: batch norm in training mode" in str(report).splitlines()
    assert report.notes[0].startswith("whole steps, one at a time: the output of forward_func for one example depends")


def test_a_report_cannot_be_changed():
    with pytest.raises(AttributeError):
        report_of().n_rows = 3


def test_it_prints_as_a_table():
    lines = str(report_of(internal_batch_size=4)).splitlines()
    assert lines[0] == "path points     14, 14 evaluated"
    assert lines[1].startswith("chunks          3 of 4, 1 of 2")
    assert "  swapped       4 x conv2d" in lines
    assert all(len(line) < 120 for line in lines)


def test_captums_tools_pass_it_through():
    """An explainer that has a report to give works in them as Captum's."""
    found = []
    for library in (igfast, captum.attr):
        torch.manual_seed(0)
        explainer = captum.attr.NoiseTunnel(library.IntegratedGradients(models.convnet()))
        found.append(explainer.attribute(X, target=1, nt_samples=2, n_steps=5))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)
