"""The networks that are measured."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Logits(nn.Module):
    """A transformers classifier as a function to its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, classes)."""
        logits: Tensor = self.model(pixels).logits
        return logits


def resnet50(side: int = 224) -> tuple[nn.Module, Tensor]:
    """ResNet-50 with random weights and calibrated batch norm, and one image.

    Uncalibrated, activations shrink to denormal numbers on the way, which the processor handles ten times slower.
    """
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    model = Logits(ResNetForImageClassification(ResNetConfig(num_labels=1000)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average over the batches seen
    model.train()
    with torch.no_grad():
        model(torch.randn(4, 3, 224, 224))
    return model.eval(), torch.randn(1, 3, side, side)
