"""Recognises errors that say that memory ran out, and frees memory before another attempt."""

from __future__ import annotations

import ctypes
import gc
import importlib

import torch

from igfast.errors import IgfastError
from igfast.ops._load import kernels_loaded

_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",  # of cuDNN 9, HOST_ and DEVICE_
    "bad_alloc",
    "unable to find an engine",  # of PyTorch, where no cuDNN workspace could be allocated: it hides the reason
    "CUBLAS_STATUS_NOT_INITIALIZED",  # where a handle's workspace does not fit
)
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # in glibc only


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of Python, of PyTorch on any device or of a library below says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, IgfastError):
        return False  # its message may quote such an error
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def free_memory(device: torch.device) -> None:
    """Frees reference cycles and cached blocks, after memory ran out."""
    gc.collect()
    give_back_freed_blocks()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch._C._host_emptyCache()  # pinned memory, which is kept otherwise


def give_back_freed_blocks() -> None:
    """Decommits the free pages of the host pool and of glibc's heap."""
    if kernels_loaded():
        importlib.import_module("igfast._C").empty_host_pool()
    if _malloc_trim is not None:
        _malloc_trim(0)
