"""Models that work in place on what they are given leave the caller's tensors as they are."""

import warnings
from typing import Optional

import pytest
import torch
from torch import nn

import igfast
from tests.oracle import relative_difference


class InPlace(nn.Module):
    """Works in place on everything it is given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.relu, self.linear = nn.ReLU(inplace=True), nn.Linear(3, 2).double()

    def forward(self, x, scale: Optional[torch.Tensor] = None):  # noqa: UP045 (torch.jit reads it)
        x[:, 0] *= 2
        x = self.relu(x)
        if scale is not None:
            x = x * scale.mul_(3)
        return self.linear(x)


@pytest.mark.parametrize("internal_batch_size", [None, 1, 3])
@pytest.mark.parametrize("scripted", [False, True])
def test_forward_that_works_in_place(internal_batch_size, scripted):
    network = InPlace()
    if scripted:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit.*")  # torch.jit is on its way out, but in use
            forward = torch.jit.script(network)
    else:
        forward = network
    x, baseline = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    scale = torch.rand(2, 3, dtype=torch.float64)
    kept = x.clone(), baseline.clone(), scale.clone()
    got, delta = igfast.IntegratedGradients(forward).attribute(
        x,
        baseline,
        1,
        scale,
        n_steps=9,
        internal_batch_size=internal_batch_size,
        return_convergence_delta=True,
    )
    wanted, wanted_delta = igfast.IntegratedGradients(lambda x, s: network(x.clone(), s.clone())).attribute(
        x, baseline, 1, scale, n_steps=9, return_convergence_delta=True
    )
    assert relative_difference(got, wanted) <= 1e-12
    torch.testing.assert_close(delta, wanted_delta)
    assert torch.equal(x, kept[0])
    assert torch.equal(baseline, kept[1])
    assert torch.equal(scale, kept[2])


class InPlaceBehindALayer(nn.Module):
    """Works in place on its arguments, with an embedding in front."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.linear = nn.Embedding(9, 3).double(), nn.Linear(3, 2).double()

    def forward(self, ids, scale):
        ids.add_(1)
        return self.linear(torch.tanh(self.embedding(ids).sum(1) * scale.mul_(3)))


@pytest.mark.parametrize("internal_batch_size", [None, 1])
def test_layers_and_neurons_of_models_that_work_in_place_on_arguments(internal_batch_size):
    network = InPlaceBehindALayer()
    ids, scale = torch.randint(0, 8, (2, 4)), torch.rand(2, 3, dtype=torch.float64)
    kept = ids.clone(), scale.clone()

    def cloning(ids, scale):
        return network(ids.clone(), scale.clone())

    def neuron(ids, scale):
        return igfast.NeuronIntegratedGradients(lambda s, i: forward(i, s), network.linear).attribute(
            scale, 1, additional_forward_args=ids, n_steps=5, internal_batch_size=internal_batch_size
        )

    found = []
    for forward in (network, cloning):
        layer = igfast.LayerIntegratedGradients(forward, network.embedding)
        found.append(layer.attribute(ids, 0, 1, scale, n_steps=5, internal_batch_size=internal_batch_size))
        found.append(neuron(ids, scale))
        assert torch.equal(ids, kept[0])
        assert torch.equal(scale, kept[1])
    assert relative_difference(found[0], found[2]) <= 1e-12
    assert relative_difference(found[1], found[3]) <= 1e-12
