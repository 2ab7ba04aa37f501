"""The Captum-compatible face of igfast."""

from igfast.attr.integrated_gradients import IntegratedGradients as IntegratedGradients
from igfast.attr.layer import LayerIntegratedGradients as LayerIntegratedGradients
from igfast.attr.neuron import NeuronIntegratedGradients as NeuronIntegratedGradients
