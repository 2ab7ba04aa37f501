"""Imports Captum's classes in every usual way and uses each; run by tests/test_patching.py."""

import sys

import captum
import captum.attr as attr
import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients
from captum.attr import NeuronIntegratedGradients as Neuron
from captum.attr._core.integrated_gradients import IntegratedGradients as Core
from torch import nn

METHODS = {"ig": attr.IntegratedGradients}
IN_A_LIST = [attr.LayerIntegratedGradients]


def late(network):
    from captum.attr import IntegratedGradients as Late

    return Late(network)


torch.manual_seed(0)
network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).eval()
x = torch.randn(2, 3)
results = [
    explainer.attribute(x, target=1)
    for explainer in (
        IntegratedGradients(network),
        captum.attr.IntegratedGradients(network),
        Core(network),
        METHODS["ig"](network),
        late(network),
        LayerIntegratedGradients(network, network[0]),
        IN_A_LIST[0](network, network[0]),
    )
]
results.append(Neuron(network, network[1]).attribute(x, 3))
results.append(attr.NoiseTunnel(IntegratedGradients(network)).attribute(x, nt_samples=2, stdevs=0.0, target=1))
print(sys.argv[1:], [round(float(r.sum()), 4) for r in results])
