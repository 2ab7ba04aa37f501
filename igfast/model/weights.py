"""The weights of a model that each of its forward passes reads whole."""

from __future__ import annotations

import torch
from torch import nn


def weight_bytes(module: nn.Module | None, device: torch.device) -> int:
    """Bytes of the weights that a chunk reads whole, on the device whose memory is measured."""
    parts = module.modules() if module is not None else ()
    layers = [part for part in parts if not _is_table(part)]
    weights = {weight for layer in layers for weight in layer.parameters(recurse=False)}  # some are shared
    read = (weight for weight in weights if not nn.parameter.is_lazy(weight) and weight.device == device)
    return sum(weight.numel() * weight.element_size() for weight in read)


def _is_table(module: nn.Module) -> bool:
    """Whether a module reads some of its weights only; a scripted one knows the name of what it was made from."""
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name in ("Embedding", "EmbeddingBag")
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))
