"""What the handlers of lean execution share.

A handler takes the arguments of a PyTorch function and returns what that would, or a `Plain` that says why the function
itself has to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Plain(str):
    """Why a call runs plainly; empty where plain autograd keeps nothing that it does not need anyway."""

    __slots__ = ()


NOTHING_TO_SAVE = Plain("")
_FLOATING = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def refuses(x: Tensor, *weights: Any) -> Plain | None:
    """Why a call cannot be lean that has `x` as its differentiable input beside `weights`; None if it can."""
    if not x.requires_grad or not torch.is_grad_enabled():
        return NOTHING_TO_SAVE
    if x.dtype not in _FLOATING or x.layout is not torch.strided:
        return Plain(f"{x.dtype} {x.layout}")
    if not (x.is_cpu or x.is_cuda):
        return Plain(f"tensors on {x.device.type}")
    if torch.is_autocast_enabled("cpu" if x.is_cpu else "cuda"):
        return Plain("torch.autocast")
    for weight in weights:
        if not isinstance(weight, Tensor) or weight.dtype is not x.dtype or weight.layout is not torch.strided:
            return Plain("a weight of another type")
        if weight.requires_grad and weight.grad_fn is not None:
            return Plain("a weight that is computed in the forward pass")
    return None


def is_parameter(tensor: Any) -> bool:
    """Whether this is a weight beyond doubt, and not an activation."""
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def sizes(value: int | Sequence[int], n: int) -> Sequence[int]:
    """A window's numbers, one for each of `n` dimensions."""
    if type(value) is tuple and len(value) == n:
        return value
    if isinstance(value, int):
        return [value] * n
    return [value[0]] * n if len(value) == 1 else value
