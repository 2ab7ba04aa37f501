"""Networks for the tests: small, seeded, in evaluation mode, float64 unless said."""

import contextlib
import io

import torch
from torch import nn


def mlp(n_features: int = 3, n_classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n_features, 8), nn.Tanh(), nn.Linear(8, n_classes)).double().eval()


def convnet(channels: int = 3, side: int = 8, n_classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(6 * (side // 2) ** 2, n_classes)).double().eval()


class TwoInputs(nn.Module):
    """Takes (batch, 3) and (batch, 2, 4), optionally scaled per example; returns (batch, 4)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.left, self.right = nn.Linear(3, 4).double(), nn.Linear(8, 4).double()
        self.eval()

    def forward(self, a, b, scale=None, power=1):
        out = torch.sigmoid(self.left(a)) * torch.tanh(self.right(b.flatten(1)))
        if scale is not None:
            out = out * scale
        return out**power


class Logits(nn.Module):
    """A transformers classifier as a function to its logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixels).logits


def calibrate_batch_norm(model: nn.Module, batch: torch.Tensor) -> nn.Module:
    """Gives random networks the statistics of a batch: without them activations shrink to denormal numbers."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(batch)
    return model.eval()


def transformers_model(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A float64 classifier of one architecture with random weights, and an image of the size it takes."""
    import transformers as tf

    torch.manual_seed(0)
    if name == "resnet":
        config = tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], num_labels=5)
        model = Logits(tf.ResNetForImageClassification(config))
    elif name == "vit":
        config = tf.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=32,
            patch_size=8,
            num_labels=5,
        )
        model = Logits(tf.ViTForImageClassification(config))
    else:
        config = tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=5, patch_size=4)
        model = Logits(tf.ConvNextForImageClassification(config))
    image = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    return calibrate_batch_norm(model.double(), torch.rand(8, 3, 32, 32, dtype=torch.float64)), image


def efficientnet() -> nn.Module:
    """The ImageNet-trained EfficientNet-Lite0 in float32."""
    from igfast.cli.photograph import load_network

    with contextlib.redirect_stdout(io.StringIO()):
        return load_network()
