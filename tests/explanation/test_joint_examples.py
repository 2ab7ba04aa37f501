"""Summaries and pages of examples that depend on each other, and of targets for each entry of an output."""

import pytest
import torch

import igfast

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def centred(x):
    values = x.tanh()
    return values - values.mean(0)


@pytest.mark.filterwarnings("ignore:the output of forward_func for one example depends")
@pytest.mark.parametrize("options", [{"method": "trapezoid"}, {"method": "riemann_middle"}, {"tolerance": 0.05}])
def test_a_summary_of_examples_that_depend_on_each_other(options):
    explanation = igfast.IntegratedGradients(centred).explain(X, target=1, **options)
    lines = explanation.summary().splitlines()
    assert any(line.startswith("error +- ") and "of all examples together" in line for line in lines)
    assert len(lines) == 3 + 1 + len(X)  # the error, the columns' names, and the examples
    assert "error" in igfast.viz.report(explanation)


def test_pages_of_targets_for_each_entry_of_the_output():
    points = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    explainer = igfast.IntegratedGradients(lambda x: x.tanh().view(3, 4, 5).mean(1))
    explanation = explainer.explain(points, target=[0, 2, 1])
    assert "a target for each entry of the output" in igfast.viz.report(explanation)


def test_names_of_times_are_not_those_of_channels():
    names = [f"t{i}" for i in range(30)]
    explanation = igfast.IntegratedGradients(torch.nn.Linear(30, 1)).explain(torch.rand(1, 30), feature_names=names)
    figure = igfast.viz.series(explanation)
    assert len(figure.axes) == 1
    assert len(igfast.viz.series([0.0, 1.0], [0.5, 0.2]).axes) == 1
