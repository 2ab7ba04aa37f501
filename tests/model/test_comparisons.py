"""Rows that depend on each other are found where large numbers, offsets, places or shared parts would hide that."""

import copy

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
