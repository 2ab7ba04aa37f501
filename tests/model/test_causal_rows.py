"""Rows that depend on those before them alone, arguments of one row, and models that change between calls."""

from contextlib import nullcontext

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

import igfast
from igfast.run.plan import ChunkLimits
from tests.oracle import relative_difference

DOUBLE = torch.float64
DEPENDS = "depends on the others in its batch"


class Tagger(nn.Module):
    """A sequence-first LSTM with an output for each place of the one sequence, (length, features) to (length, 3)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(8, 16).double(), nn.Linear(16, 3).double()

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def against_the_first():
    """A function of each row beside the first one, which is the reference."""
    return lambda x: (x * x[:1]).tanh()


@pytest.fixture
def few_rows(monkeypatch):
    """Lets a chunk begin with as many bytes as a test says, in the place of megabytes."""

    def set_first(n_bytes):
        limits = ChunkLimits(first=n_bytes, largest=n_bytes, cheap=0, share=1)
        monkeypatch.setattr("igfast.run.plan.CPU", limits)

    return set_first


def check(forward, x, size):
    theirs = captum.attr.IntegratedGradients(forward).attribute(x, target=1, internal_batch_size=len(x))
    with pytest.warns(igfast.IgfastWarning, match=DEPENDS):
        ours = igfast.IntegratedGradients(forward).attribute(x, target=1, internal_batch_size=size)
    assert relative_difference(ours, theirs) <= 2e-7


@pytest.mark.parametrize("make", [Tagger, against_the_first])
@pytest.mark.parametrize("size", [10, 80, 120])
def test_examples_that_are_split_and_steps_that_are_stacked(make, size):
    """Chunks of a quarter of the examples, and of two and three steps, of which the first has its own values."""
    torch.manual_seed(1)
    check(make(), torch.randn(40, 8, dtype=DOUBLE), size)


@pytest.mark.parametrize("n_rows", [10, 80])
def test_chunks_of_igfasts_choice(n_rows, few_rows):
    torch.manual_seed(1)
    x = torch.randn(40, 8, dtype=DOUBLE)
    few_rows(n_rows * 8 * 8)
    check(Tagger(), x, None)


def test_copies_of_one_example_side_by_side(few_rows):
    """GradientSHAP's chunks: the first of three copies has its own values."""
    x = torch.randn(1, 8, dtype=DOUBLE)
    few_rows(3 * x.nbytes)
    found = []
    for library in (igfast, captum.attr):
        np.random.seed(0)
        torch.manual_seed(0)
        explainer = library.GradientShap(against_the_first())
        with pytest.warns(igfast.IgfastWarning, match=DEPENDS) if library is igfast else nullcontext():
            found.append(explainer.attribute(x, x * 0, n_samples=6, stdevs=0.2, target=1))
    torch.testing.assert_close(*found)


def test_groups_of_samples_of_a_layer(few_rows):
    model = Tagger()
    x = torch.randn(5, 8, dtype=DOUBLE)
    few_rows(2 * x.nbytes)
    with pytest.warns(igfast.IgfastWarning, match="the output of one example depends on the others in the batch"):
        igfast.LayerGradientShap(model, model.head).attribute(x, x * 0, n_samples=6, target=1)


@pytest.mark.filterwarnings("ignore::igfast.IgfastWarning")
def test_an_argument_of_one_row_is_passed_as_it_is_to_as_many_rows_as_the_caller_has():
    torch.manual_seed(0)
    x, support = torch.randn(4, 6, dtype=DOUBLE), torch.randn(1, 6, dtype=DOUBLE)

    def forward(x, support):
        return torch.exp(-torch.cdist(x, support)).sum(1)

    options = {"additional_forward_args": support}
    wanted = captum.attr.IntegratedGradients(forward).attribute(x, internal_batch_size=4, **options)
    for size in (4, 2, None):
        got, delta = igfast.IntegratedGradients(forward).attribute(
            x, internal_batch_size=size, return_convergence_delta=True, **options
        )
        assert relative_difference(got, wanted) <= 2e-7
        assert float(delta.abs().max()) < 1e-6


@pytest.mark.filterwarnings("ignore::igfast.IgfastWarning")
def test_a_state_whose_first_dimension_is_of_layers():
    torch.manual_seed(0)
    gru, head = nn.GRU(5, 8, batch_first=True).double(), nn.Linear(8, 3).double()
    x, state = torch.randn(4, 7, 5, dtype=DOUBLE), torch.randn(1, 4, 8, dtype=DOUBLE)

    def forward(x, state):
        return head(gru(x, state)[0][:, -1])

    options = {"target": 0, "additional_forward_args": state}
    wanted = captum.attr.IntegratedGradients(forward).attribute(x, internal_batch_size=4, **options)
    for size in (4, None):
        got = igfast.IntegratedGradients(forward).attribute(x, internal_batch_size=size, **options)
        assert relative_difference(got, wanted) <= 2e-7


def test_a_number_in_a_tensor():
    torch.manual_seed(0)
    network, temperature = nn.Linear(6, 3).double(), torch.tensor([0.5])
    x = torch.randn(4, 6, dtype=DOUBLE)
    got = igfast.IntegratedGradients(lambda x, t: network(x) / t).attribute(
        x, target=1, additional_forward_args=temperature, internal_batch_size=4
    )
    torch.testing.assert_close(got, 2 * x * network.weight[1].detach())


def without_statistics(model):
    model[1] = nn.BatchNorm1d(8, track_running_stats=False).double().eval()


def that_loses_statistics(model):
    model[1].running_mean = model[1].running_var = None


class Centres(nn.Module):
    """Takes the mean of the rows off each."""

    def forward(self, x):
        return (x - x.mean(0)).tanh()


def with_another_part(model):
    model[2] = Centres().double().eval()


def with_a_hook(model):
    """As a mean ablation is written."""
    model[0].register_forward_hook(lambda module, args, output: output - output.mean(0))


def with_a_hook_before(model):
    model[2].register_forward_pre_hook(lambda module, args: (args[0] - args[0].mean(0),))


@pytest.mark.parametrize(
    "change", [without_statistics, that_loses_statistics, with_another_part, with_a_hook, with_a_hook_before]
)
def test_a_model_that_was_changed_is_looked_at_anew(change):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
    x = torch.randn(4, 6, dtype=DOUBLE)
    explainer = igfast.IntegratedGradients(model)
    explainer.attribute(x, target=1)
    change(model)
    with pytest.warns(igfast.IgfastWarning, match=DEPENDS):
        got = explainer.attribute(x, target=1)
    wanted = captum.attr.IntegratedGradients(model).attribute(x, target=1, internal_batch_size=4)
    assert relative_difference(got, wanted) <= 2e-7


def test_a_layers_own_hooks_do_not_make_calls_differ(monkeypatch):
    calls = []
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    explainer = igfast.LayerIntegratedGradients(model, model[1])
    for _ in range(2):
        calls.clear()
        explainer.attribute(torch.randn(4, 6, dtype=DOUBLE), target=1)
    assert len(calls) == 3  # the layer's values at both ends, and one chunk: nothing is compared again
