"""Rows that depend on each other are found where large numbers, offsets, places or shared parts would hide that."""

import copy
import math

import captum.attr
import pytest
import torch
from torch import nn

import igfast
from igfast.model.independence import distance
from tests.oracle import relative_difference

DOUBLE = torch.float64
WHOLE = "so each step went through the model as a whole"
pytestmark = pytest.mark.filterwarnings("ignore::igfast.ConvergenceWarning")


def rows(n, *shape):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


def normalised(head):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    model = nn.Sequential(nn.Linear(5, 6), norm, nn.Tanh(), nn.Linear(6, 3)).double().train()
    return lambda x: head(model(x))


def wanted_of(forward, x, **options):
    """Each step as a call of its own, by the trapezoid that `method` names."""
    total = torch.zeros_like(x)
    alphas = torch.linspace(0, 1, options["n_steps"] + 1, dtype=DOUBLE)
    alphas = (alphas[1:] + alphas[:-1]) / 2
    for alpha in alphas:
        point = (alpha * x).requires_grad_()
        total += torch.autograd.grad(forward(point)[:, 1].sum(), point)[0] / len(alphas)
    return total * x


HEADS = {
    "masked": lambda y: y.masked_fill(torch.tensor([True, False, False]), -1e9),
    "offset": lambda y: y + 1000,
    "plain": lambda y: y,
}


@pytest.mark.parametrize("size", [None, 2, 20])
@pytest.mark.parametrize("head", HEADS)
def test_large_columns_and_offsets_hide_nothing(head, size):
    forward, x = normalised(HEADS[head]), rows(8, 5).double()
    options = {"n_steps": 10, "method": "riemann_middle"}
    wanted = wanted_of(forward, x, **options)
    with pytest.warns(igfast.IgfastWarning, match=WHOLE):
        got = igfast.IntegratedGradients(forward).attribute(x, target=1, internal_batch_size=size, **options)
    assert relative_difference(got, wanted) <= 1e-9


@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize("of", ["place", "largest"])
def test_splits_see_places_and_what_parts_share(of, size):
    x, layer = rows(6, 5).double(), nn.Linear(5, 3).double()
    x[0] *= 3  # has the largest value

    def forward(x):
        by = 1 + 0.3 * torch.linspace(0, 1, 6, dtype=DOUBLE)[: len(x), None] if of == "place" else 1 / x.abs().max()
        return layer(x * by).tanh()

    options = {"n_steps": 10, "method": "riemann_middle"}
    with pytest.warns(igfast.IgfastWarning, match=WHOLE):
        got = igfast.IntegratedGradients(forward).attribute(x, target=1, internal_batch_size=size, **options)
    assert relative_difference(got, wanted_of(forward, x, **options)) <= 1e-9


def test_tolerance_with_one_row_at_a_time_sees_other_examples():
    torch.manual_seed(0)
    gru, head = nn.GRU(5, 6).double(), nn.Linear(6, 3).double()

    def forward(x):  # an example depends on those before it
        return head(gru(x[:, None])[0][:, 0])

    x = rows(4, 5).double()
    with pytest.warns(igfast.IgfastWarning, match=WHOLE):
        got = igfast.IntegratedGradients(forward).attribute(x, target=1, tolerance=1e-3, internal_batch_size=1)
    assert relative_difference(got, wanted_of(forward, x, n_steps=400)) <= 3e-3


@pytest.mark.parametrize("size", [None, 1, 3, 20])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0, 1e4])
def test_independent_rows_are_stacked(offset, dtype, size, recwarn):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 64), nn.GELU(), nn.Linear(64, 3)).to(dtype)
    x = rows(4, 5).to(dtype)
    explainer = igfast.IntegratedGradients(lambda x: model(x) + offset)
    _, report = explainer.attribute(x, target=1, internal_batch_size=size, return_report=True)
    assert not [one for one in recwarn.list if "each step" in str(one.message)]
    assert not any("whole steps" in note for note in report.notes)


def test_distances_are_relative_to_how_far_rows_are_apart():
    reference = torch.tensor([[1000.0, 1.0], [1001.0, 3.0]], dtype=DOUBLE)
    moved = reference + torch.tensor([0.5, 0.0], dtype=DOUBLE)
    assert distance(moved, reference) == pytest.approx(0.5 / 1001)
    assert distance(moved, reference, reference) == pytest.approx(0.5 / (1 + 1001 * 2e-3 + 0.1))
    assert distance(reference, reference, reference) == 0
    assert distance(copy.copy(reference)[:1], reference[:1], reference[:1]) == 0


class TestAlikeExamples:
    """One image with a target for each class: alike rows have the same outputs alone, but not the same gradients."""

    @staticmethod
    def centred():
        torch.manual_seed(0)
        first, last = nn.Linear(5, 6).double(), nn.Linear(6, 4).double()

        def forward(x):
            h = first(x).tanh()
            return last((h - h.mean(0)).tanh())

        return forward

    @pytest.mark.parametrize("size", [None, 1, 2])
    @pytest.mark.parametrize("of", ["batch norm", "mean"])
    def test_are_not_split(self, of, size):
        forward = normalised(lambda y: y) if of == "batch norm" else self.centred()
        x, targets = rows(1, 5).double().repeat(4, 1), torch.tensor([0, 1, 2, 0])
        with pytest.warns(igfast.IgfastWarning, match=WHOLE):
            got = igfast.IntegratedGradients(forward).attribute(x, target=targets, n_steps=10, internal_batch_size=size)
        wanted = captum.attr.IntegratedGradients(forward).attribute(
            x, target=targets, n_steps=10, internal_batch_size=4
        )
        assert relative_difference(got, wanted) <= 1e-6

    @pytest.mark.parametrize("size", [None, 1, 2])
    @pytest.mark.parametrize("first", ["zeros", "no events"])
    def test_tell_nothing_for_later_calls(self, first, size):
        centred, x = self.centred(), rows(4, 5).double()

        def forward(x, counts):
            return centred(x)[:, 1] * counts

        def attribute(x, counts):
            explainer = igfast.IntegratedGradients(forward)
            return explainer.attribute(x, additional_forward_args=counts, n_steps=10, internal_batch_size=size)

        ones = torch.ones(4, dtype=DOUBLE)
        before = attribute(*((0 * x, ones) if first == "zeros" else (x, 0 * ones)))
        assert not before.any()
        with pytest.warns(igfast.IgfastWarning, match=WHOLE):
            got = attribute(x, ones)
        options = {"additional_forward_args": ones, "n_steps": 10, "internal_batch_size": 4}
        wanted = captum.attr.IntegratedGradients(forward).attribute(x, **options)
        assert relative_difference(got, wanted) <= 1e-6

    def test_independent_ones_are_split(self, recwarn):
        layer = nn.Linear(5, 3).double()
        x = rows(1, 5).double().repeat(4, 1)
        options = {"target": [0, 1, 2, 0], "internal_batch_size": 1, "return_report": True}
        _, report = igfast.IntegratedGradients(layer).attribute(x, **options)
        assert not recwarn.list
        assert set(report.chunks) == {1}


@pytest.mark.parametrize("size", [None, 7])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_outputs_that_change_with_the_number_of_rows(dtype, size):
    layer, x = nn.Linear(5, 3).to(dtype), rows(8, 5).to(dtype)

    def forward(x):
        return (layer(x) / (1 + 0.2 * math.log(len(x)))).tanh()

    options = {"target": 1, "n_steps": 10, "internal_batch_size": size}
    with pytest.warns(igfast.IgfastWarning, match=WHOLE):
        got = igfast.IntegratedGradients(forward).attribute(x, **options)
    wanted = captum.attr.IntegratedGradients(forward).attribute(x, **options | {"internal_batch_size": 8})
    assert relative_difference(got, wanted) <= 1e-5


def test_session_numbers_in_a_column_are_looked_at_anew():
    layer, x = nn.Linear(5, 3).double(), rows(4, 5).double()

    def forward(x, session):
        same = (session == session.T).double()
        return (layer(x) + same @ x[:, :3] / same.sum(1, keepdim=True)).tanh()

    explainer, options = igfast.IntegratedGradients(forward), {"target": 1, "internal_batch_size": 1}
    explainer.attribute(x, additional_forward_args=torch.arange(4)[:, None], **options)
    shared = torch.tensor([[0], [0], [1], [1]])
    with pytest.warns(igfast.IgfastWarning, match=WHOLE):
        got = explainer.attribute(x, additional_forward_args=shared, **options)
    options |= {"internal_batch_size": 4, "additional_forward_args": shared}
    assert relative_difference(got, captum.attr.IntegratedGradients(forward).attribute(x, **options)) <= 1e-6
