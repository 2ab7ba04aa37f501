"""What the handlers of lean execution share.

A handler takes the arguments of a PyTorch function and returns what that would, or a `Plain` that says why the function
itself has to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, SupportsIndex

from torch import Tensor, nn

from igfast._C import lean_refusal


class Plain(str):
    """Why a call runs plainly; empty where plain autograd keeps nothing that it does not need anyway."""

    __slots__ = ()


NOTHING_TO_SAVE = Plain("")
_WHY = (  # by the numbers that lean_refusal returns
    "",
    "",
    "{x.dtype} {x.layout}",
    "tensors on {x.device.type}",
    "torch.autocast",
    "a weight of another type",
    "a weight that is computed in the forward pass",
    "a transform of torch.func",
)


def refuses(x: Tensor, *weights: Any) -> Plain | None:
    """Why a call cannot be lean that has `x` as its differentiable input beside `weights`; None if it can."""
    refusal = lean_refusal(x, *weights)
    return None if refusal == 0 else Plain(_WHY[refusal].format(x=x))


def is_parameter(tensor: Any) -> bool:
    """Whether this is a weight beyond doubt, and not an activation."""
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def sizes(value: SupportsIndex | Sequence[int], n: int) -> Sequence[int]:
    """A window's numbers, one for each of `n` dimensions."""
    if type(value) is tuple and len(value) == n:
        return value
    if isinstance(value, int):
        return [value] * n
    if isinstance(value, Sequence):
        return [value[0]] * n if len(value) == 1 else value
    return [index(value)] * n  # of NumPy, too
