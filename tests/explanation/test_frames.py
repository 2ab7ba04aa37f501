"""Explanations of DataFrames and as DataFrames, and what they keep of layers and graphs."""

import copy

import numpy as np
import pandas
import pytest
import torch
from torch import nn

import igfast

FRAME = pandas.DataFrame({"rooms": [6.0, 2.0], "age": [65, 30], "tax": [1.0, 2.0]})


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def test_a_frame_goes_in_and_comes_out():
    explainer = igfast.IntegratedGradients(network())
    explanation = explainer.explain(FRAME, FRAME.mean().to_frame().T, target=1)
    wanted = explainer.explain(FRAME.to_numpy(), FRAME.to_numpy().mean(0, keepdims=True), target=1)
    assert torch.equal(explanation.attributions, wanted.attributions)
    assert explanation.feature_names == ("rooms", "age", "tax")
    frame = explanation.to_pandas()
    assert list(frame.columns) == ["rooms", "age", "tax"]
    np.testing.assert_array_equal(frame.to_numpy(), explanation.to_numpy())
    assert list(wanted.to_pandas().columns) == [0, 1, 2]
    assert explainer.explain(FRAME, target=1, feature_names=FRAME.columns).feature_names == ("rooms", "age", "tax")


def test_frames_of_embeddings_and_of_several_inputs():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    explanation = igfast.LayerIntegratedGradients(net, net[0]).explain(torch.tensor([[1, 2, 3]]), target=0)
    np.testing.assert_allclose(explanation.to_pandas().to_numpy(), explanation.attributions.sum(2).numpy())
    two = igfast.IntegratedGradients(lambda a, b: a.sum(1) + b.sum(1)).explain((torch.ones(1, 2), torch.ones(1, 1)))
    assert list(two.to_pandas().columns) == [(0, 0), (0, 1), (1, 0)]
    image = igfast.IntegratedGradients(lambda x: x.sum((1, 2, 3))).explain(torch.ones(1, 3, 2, 2))
    with pytest.raises(igfast.InputError, match=r"got \(1, 3, 2, 2\)"):
        image.to_pandas()


def test_a_frame_of_texts():
    with pytest.raises(igfast.InputTypeError, match="inputs is an array of object"):
        igfast.IntegratedGradients(network()).explain(pandas.DataFrame({"a": ["x"], "b": [1], "c": [2]}), target=0)


def test_a_diagnosis_of_arrays_and_of_what_it_does_not_take():
    assert igfast.diagnose(network(), FRAME, 1, np.zeros((1, 3)))["completeness"].verdict == "good"
    with pytest.raises(igfast.ArgumentTypeError, match="to be diagnosed; got a Baselines"):
        igfast.diagnose(network(), FRAME, 1, igfast.Baselines(torch.rand(3, 3)))


def test_layers_are_named():
    net = network()
    for forward in (net, lambda x: net(x)):
        for number in (0, 2):
            explanation = igfast.LayerIntegratedGradients(forward, net[number]).explain(torch.ones(1, 3), target=1)
            assert explanation.meta["layer"] == f"{number} (Linear)"
            assert f"layer {number} (Linear)" in explanation.summary()


def test_an_explanation_has_no_graph():
    x = torch.ones(1, 3, requires_grad=True)
    explanation = igfast.IntegratedGradients(network()).explain(x, target=1)
    assert not explanation.attributions.requires_grad
    copy.deepcopy(explanation)
