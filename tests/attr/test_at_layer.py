"""Paths that begin at a value of the layer itself."""

import pytest
import torch
from torch import nn

import igfast
from igfast.baselines import AtLayer


class TestBaselinesAtTheLayer:
    """The path starts at a value of the layer itself."""

    IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])

    def net(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 2)).double()

    def from_embeddings(self, net, start, target=1):
        """The same attributions of the network from the embeddings on."""
        x = net[0](self.IDS).detach()
        return igfast.IntegratedGradients(net[1:]).attribute(
            x, start.expand_as(x), target, n_steps=50, return_convergence_delta=True
        )

    @pytest.mark.parametrize(
        ("value", "start"),
        [
            (0.0, torch.zeros(1)),
            (1, torch.ones(1)),
            (torch.full((1, 3, 4), 0.25), torch.full((1,), 0.25)),
            (torch.arange(24.0).view(2, 3, 4), torch.arange(24.0).view(2, 3, 4)),
        ],
    )
    def test_equals_the_network_from_the_embeddings_on(self, value, start):
        net = self.net()
        explainer = igfast.LayerIntegratedGradients(net, net[0])
        given = explainer.attribute(self.IDS, AtLayer(value), 1, return_convergence_delta=True)
        expected = self.from_embeddings(net, start.double())
        for one, other in zip(given, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)

    @pytest.mark.filterwarnings("ignore:Multiple layers provided")
    def test_of_the_layers_input_and_of_several_layers(self):
        net = self.net()
        of_input = igfast.LayerIntegratedGradients(net, net[2]).attribute(
            self.IDS, AtLayer(0.0), 1, attribute_to_layer_input=True
        )
        expected, _ = self.from_embeddings(net, torch.zeros(1).double())
        torch.testing.assert_close(of_input, expected.flatten(1), rtol=1e-12, atol=1e-13)
        two = TwoTexts().double()
        ids = (self.IDS, self.IDS + 1)
        for value in (0.0, (0.0, torch.zeros(1, 4).double())):
            explainer = igfast.LayerIntegratedGradients(two, [two.one, two.other])
            parts, delta = explainer.attribute(ids, AtLayer(value), return_convergence_delta=True)
            assert delta.abs().max() < 1e-8
            assert [part.shape for part in parts] == [(2, 4), (2, 4)]

    def test_explanations_keep_it(self):
        net = self.net()
        explanation = igfast.LayerIntegratedGradients(net, net[0]).explain(
            self.IDS, igfast.baselines.zero_embeddings(self.IDS), 1
        )
        assert explanation.baselines == 0.0
        assert explanation.meta["baselines_at_layer"]
        at_zero = net[1:](torch.zeros(2, 3, 4).double())[:, 1].detach()
        torch.testing.assert_close(explanation.baseline_predictions, at_zero)

    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            (torch.zeros(2, 3, 5), igfast.BaselineError, r"shape of the layer's value, \(2, 3, 4\) or \(1, 3, 4\)"),
            ((0.0, 0.0), igfast.BaselineError, "tuple of length 1; got 2"),
            ("zero", igfast.ArgumentTypeError, "a tensor or a number; got a str"),
        ],
    )
    def test_bad_values(self, value, error, message):
        net = self.net()
        with pytest.raises(error, match=message):
            igfast.LayerIntegratedGradients(net, net[0]).attribute(self.IDS, AtLayer(value), 1)

    def test_refused_where_no_layer_is(self):
        net = self.net()
        with pytest.raises(igfast.ArgumentTypeError, match="AtLayer"):
            igfast.IntegratedGradients(net[1:]).attribute(net[0](self.IDS).detach(), AtLayer(0.0), 1)
        with pytest.raises(igfast.ArgumentError, match="asks for a graph"):
            igfast.LayerIntegratedGradients(net, net[0]).attribute(
                self.IDS, AtLayer(0.0), 1, grad_kwargs={"create_graph": True}
            )


class TwoTexts(nn.Module):
    """Two embeddings that do not feed each other."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.EmbeddingBag(10, 4), nn.EmbeddingBag(10, 4)

    def forward(self, a, b):
        return (self.one(a).tanh() * self.other(b)).sum(dim=1)
