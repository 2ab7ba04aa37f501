"""Models that draw random numbers: what igfast finds out about them leaves the generators as they were."""

import pytest
import torch
from torch import nn

import igfast

DOUBLE = torch.float64
pytestmark = [
    pytest.mark.filterwarnings("ignore:the output of forward_func changes from call to call"),
    pytest.mark.filterwarnings("ignore:the output of one example depends on the others"),
]


def rows():
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3)).double().train()


def images():
    """In float32, with a convolution: channels-last images are compared with the caller's."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


ROWS, ROW, IMAGES = torch.randn(2, 6, dtype=DOUBLE), torch.randn(1, 6, dtype=DOUBLE), torch.randn(2, 3, 8, 8)


def squeezed(model):
    return lambda x: model(x).squeeze(0)


@pytest.mark.parametrize(
    ("make", "x"), [(rows, ROWS), (images, IMAGES), (lambda: squeezed(rows()), ROW)], ids=["rows", "images", "squeezed"]
)
def test_first_and_later_calls_draw_the_same_random_numbers(make, x):
    explainer, found = igfast.IntegratedGradients(make()), []
    for _ in range(2):
        torch.manual_seed(3)
        found.append((explainer.attribute(x, target=1, n_steps=4), torch.rand(1)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_the_largest_class_is_found_beside_the_random_numbers():
    """Of one example and step, the call without a graph that finds the class draws nothing."""
    model = rows()
    explainer = igfast.IntegratedGradients(model)
    torch.manual_seed(3)
    (found,), report = explainer.attribute_targets(ROW, "top1", n_steps=4, return_report=True)
    torch.manual_seed(3)
    expected = explainer.attribute(ROW, target=list(report.targets[0]), n_steps=4)
    assert torch.equal(found, expected)


def test_groups_of_samples_of_a_layer(monkeypatch):
    """The comparison of groups draws nothing: samples at once have the numbers of Captum's seeds."""
    import numpy as np

    from igfast.run.plan import ChunkLimits

    model = rows()
    explainer, found = igfast.LayerGradientShap(model, model[0]), []
    for first in (2 * ROWS.nbytes, 2**30):
        monkeypatch.setattr("igfast.run.plan.CPU", ChunkLimits(first=first, largest=first, cheap=0, share=1))
        np.random.seed(0)
        torch.manual_seed(0)
        found.append(explainer.attribute(ROWS, ROWS * 0, n_samples=6, target=1))
    assert torch.equal(*found)


def test_an_output_that_drops_its_dimension_and_changes():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 1)).double().train()
    with pytest.warns(igfast.IgfastWarning, match="changes from call to call"):
        got = igfast.IntegratedGradients(lambda x: model(x).squeeze()).attribute(ROW, n_steps=4)
    assert got.shape == ROW.shape
