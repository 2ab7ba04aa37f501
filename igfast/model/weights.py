"""Counts the weights of a model that each forward pass reads whole."""

from __future__ import annotations

import torch
from torch import nn


def weight_bytes(module: nn.Module | None, device: torch.device) -> int:
    """Returns the bytes of the weights on a device that each chunk reads whole: all but embedding tables."""
    parts = module.modules() if module is not None else ()
    layers = [part for part in parts if not _is_table(part)]
    weights = {weight for layer in layers for weight in layer.parameters(recurse=False)}  # a set: layers share some
    read = (weight for weight in weights if not nn.parameter.is_lazy(weight) and weight.device == device)
    return sum(weight.numel() * weight.element_size() for weight in read)


def _is_table(module: nn.Module) -> bool:
    """Returns whether a module reads only parts of its weights; scripted modules know their original class by name."""
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name in ("Embedding", "EmbeddingBag")
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))
