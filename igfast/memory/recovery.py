"""What happens when memory runs out: the errors that say so, and what can be freed before another attempt."""

from __future__ import annotations

import ctypes
import gc
import importlib

import torch

from igfast.errors import IgfastError
from igfast.ops._load import kernels_loaded

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "bad_alloc")
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, PyTorch's on any device, or that of a library below."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, IgfastError):
        return False  # whatever it quotes
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def free_memory(device: torch.device) -> None:
    """After memory ran out: frees what is in reference cycles or kept for later."""
    gc.collect()
    give_back_freed_blocks()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def give_back_freed_blocks() -> None:
    """Returns freed blocks to the system."""
    if kernels_loaded():
        importlib.import_module("igfast._C").empty_host_pool()
    if _malloc_trim is not None:
        _malloc_trim(0)
