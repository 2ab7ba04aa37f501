"""Keeps in main memory what the backward pass needs, in the place of a GPU's memory; weights stay where they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from igfast.memory.machine import available_bytes

_LARGE = 2**24  # bytes, from which on it is worth to look at the free memory
_PINNED = 2  # blocks of pinned memory are rounded up to a power of two


def storage_of(tensor: Tensor) -> int | None:
    """Returns the address of a tensor's memory; None for tensors without, such as lazy weights and some subclasses."""
    try:
        return tensor.untyped_storage().data_ptr()
    except Exception:  # subclasses raise what they like
        return None


class Offload(torch.autograd.graph.saved_tensors_hooks):
    """A block in which tensors that autograd saves are copied to main memory, and back when they are needed.

    Args:
        weights: tensors that are not copied, because the model holds their memory anyway. Writing to one before the
            backward pass raises RuntimeError then.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        kept = {storage_of(weight) for weight in weights} - {None}

        def pack(tensor: Tensor) -> tuple[Tensor, Any]:
            if storage_of(tensor) in kept:
                return tensor, tensor._version
            if tensor.layout is not torch.strided:
                return tensor.cpu(), tensor.device
            if tensor.nbytes > _LARGE and _PINNED * tensor.nbytes > available_bytes():
                raise MemoryError("main memory does not hold what the backward pass needs")
            copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            return copy.copy_(tensor), tensor.device

        def unpack(packed: tuple[Tensor, Any]) -> Tensor:
            tensor, origin = packed
            if isinstance(origin, torch.device):
                return tensor.to(origin, non_blocking=True)
            if tensor._version != origin:
                raise RuntimeError("igfast: a weight was modified by an inplace operation before the backward pass")
            return tensor

        super().__init__(pack, unpack)
