"""The networks that the benchmarks measure, and calls of both libraries on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

import captum.attr
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
            module.momentum = None  # calibrates with a plain average over batches
    model.train()
    with torch.no_grad():
        model(torch.randn(4, 3, 224, 224))
    return model.eval(), torch.randn(1, 3, side, side)


def efficientnet(side: int = 224) -> tuple[nn.Module, Tensor]:
    """EfficientNet-Lite0 with its ImageNet weights, and the demo's photograph."""
    from igfast.cli.photograph import load_network, load_photograph

    return load_network(), load_photograph(side)


def vgg16(side: int = 224) -> tuple[nn.Module, Tensor]:
    """VGG-16 with random weights of a size that keeps activations alive, and one image."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(512 * 49, 4096), nn.ReLU(True), nn.Dropout()]
    network = nn.Sequential(*layers, *head, nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, 1000))
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network.eval(), torch.randn(1, 3, side, side)


def vit() -> tuple[nn.Module, Tensor]:
    """ViT-B/16 with random weights, and one image."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    return Logits(ViTForImageClassification(ViTConfig(num_labels=1000))).eval(), torch.randn(1, 3, 224, 224)


def convnext() -> tuple[nn.Module, Tensor]:
    """ConvNeXt-T with random weights, and one image."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    torch.manual_seed(0)
    # The default scale of layers before training, 1e-6, would all but remove them from the network.
    config = ConvNextConfig(num_labels=1000, layer_scale_init_value=0.1)
    return Logits(ConvNextForImageClassification(config)).eval(), torch.randn(1, 3, 224, 224)


def bert(batch: int, tokens: int, **sizes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A BERT classifier with random weights (BERT-base without `sizes`), token ids, a mask without padding."""
    from transformers import BertConfig, BertForSequenceClassification

    class Classifier(nn.Module):
        """Ids and mask to logits."""

        def __init__(self) -> None:
            super().__init__()
            self.model = BertForSequenceClassification(BertConfig(**sizes))

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            """(batch, tokens) each to (batch, classes)."""
            logits: Tensor = self.model(ids, attention_mask=mask).logits
            return logits

    torch.manual_seed(0)
    ids = torch.randint(1000, 30000, (batch, tokens))
    return Classifier().eval(), ids, torch.ones_like(ids)


SMALL_BERT = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}


def small_cnn() -> tuple[nn.Module, Tensor]:
    """Five small layers, whose kernels take less time than their launches, and one image of 32x32."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels, width in ((3, 16), (16, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return network.eval(), torch.randn(1, 3, 32, 32)


def small_mlp() -> tuple[nn.Module, Tensor]:
    """Six layers of 64, and one example of 32 features."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(32, 64)]
    for _ in range(4):
        layers += [nn.GELU(), nn.Linear(64, 64)]
    return nn.Sequential(*layers, nn.GELU(), nn.Linear(64, 10)).eval(), torch.randn(1, 32)


def image_call(network: nn.Module, image: Tensor, library: ModuleType, **of_constructor: Any) -> Callable[..., Tensor]:
    """A library's attribution of an image, to be called with options of `attribute`."""
    explainer = library.IntegratedGradients(network, **of_constructor)
    return lambda **options: explainer.attribute(image, target=3, **options)


def text_call(
    network: nn.Module, ids: Tensor, mask: Tensor, library: ModuleType, **of_constructor: Any
) -> Callable[..., Tensor]:
    """A library's attribution of a text to its embedding layer, to be called with options of `attribute`."""
    explainer = library.LayerIntegratedGradients(network, network.model.get_input_embeddings(), **of_constructor)
    return lambda **options: explainer.attribute(ids, target=1, additional_forward_args=mask, **options)


def captum_calls(call: Callable[..., Any], n_steps: int, sizes: Iterable[int]) -> dict[str, Callable[[], object]]:
    """Captum's calls of a case (`image_call` or `text_call` of a network): without options, and with each size."""
    explain = partial(call(captum.attr), n_steps=n_steps)
    tuned = {f"captum, internal_batch_size={size}": partial(explain, internal_batch_size=size) for size in sizes}
    return {"captum": explain, **tuned}
