"""The Captum-compatible face of igfast."""

from igfast.attr.integrated_gradients import IntegratedGradients as IntegratedGradients
