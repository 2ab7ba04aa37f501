"""The Captum-compatible face of igfast."""

from igfast.attr.gradient_shap import GradientShap as GradientShap
from igfast.attr.gradient_shap import LayerGradientShap as LayerGradientShap
from igfast.attr.gradient_shap import NeuronGradientShap as NeuronGradientShap
from igfast.attr.integrated_gradients import IntegratedGradients as IntegratedGradients
from igfast.attr.layer import LayerIntegratedGradients as LayerIntegratedGradients
from igfast.attr.neuron import NeuronIntegratedGradients as NeuronIntegratedGradients
