"""Argument checks that the handlers of lean execution share.

A handler takes the arguments of a PyTorch function and returns the same result. Where PyTorch's own function has to run
instead, the handler returns the reason as a `Plain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, SupportsIndex

from torch import Tensor, nn

from igfast._C import lean_refusal
from igfast.ops._load import kernels_for


class Plain(str):
    """Why PyTorch's own function runs; empty where plain autograd saves no more than lean execution would."""

    __slots__ = ()


NOTHING_TO_SAVE = Plain("")
_WHY = (  # indexed by the number that lean_refusal returns
    "",
    "",
    "{x.dtype} {x.layout}",
    "tensors on {x.device.type}",
    "torch.autocast",
    "a weight of another type",
    "a weight that is computed in the forward pass",
    "a transform of torch.func or a forward-mode derivative",
)


def refuses(x: Tensor, *weights: Any, dim: int | None = None) -> Plain | None:
    """Returns why a call with the differentiable input `x` and `weights` (or None) cannot be lean; None if it can.

    NOTHING_TO_SAVE also where `x` does not have `dim` dimensions: PyTorch's own function runs then, or raises.
    """
    refusal = lean_refusal(x, *weights)
    if refusal != 0:
        return Plain(_WHY[refusal].format(x=x))
    return None if dim is None or x.dim() == dim else NOTHING_TO_SAVE


def lacks_kernel(x: Tensor) -> Plain | None:
    """Returns that there is no kernel for a tensor's device; None if there is one."""
    return None if x.is_cpu or kernels_for(x.device) else Plain(f"no kernel for {x.device.type}")


def is_parameter(tensor: Any) -> bool:
    """Returns whether a tensor is certainly a weight and not an activation."""
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def sizes(value: SupportsIndex | Sequence[int], n: int) -> Sequence[int]:
    """Expands an int or a sequence of one to `n` numbers, as PyTorch does for kernel sizes and strides."""
    if type(value) is tuple and len(value) == n:
        return value
    if isinstance(value, int):
        return [value] * n
    if isinstance(value, Sequence):
        return [value[0]] * n if len(value) == 1 else value
    return [index(value)] * n  # also takes NumPy's integers
