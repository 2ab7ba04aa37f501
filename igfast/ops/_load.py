"""Loads the compiled operators igfast._C, once, or says why it cannot."""

from __future__ import annotations

import functools
import importlib.util
import mmap
import os
import re
from pathlib import Path

import torch

from igfast.errors import KernelsError, warn

_REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall igfast, or `make setup` in its source folder"
_MARK = re.compile(rb"igfast-built-for-torch=([^;]+);")


def _release(version: str) -> str:
    """The release that a version string names: '2.13.0+cpu' and '2.13.0' are both '2.13.0'."""
    return version.split("+")[0]


def built_for_torch(extension: Path) -> str:
    """The torch version that an extension file was built for, read from its bytes: loading it could already crash."""
    with extension.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        mark = _MARK.search(content)
        if mark is None:
            raise KernelsError(f"{extension} is not an igfast extension. Rebuild it: {_REBUILD}")
        return mark.group(1).decode()


def check_built_for(extension: Path, running: str) -> None:
    """Raises KernelsError unless `extension` was built for the torch release `running`."""
    built = built_for_torch(extension)
    if _release(built) != _release(running):
        raise KernelsError(
            f"igfast's compiled operators were built for torch {built}, but torch {running} is running. "
            f"Rebuild them: {_REBUILD}"
        )


@functools.cache
def kernels_loaded() -> bool:
    """Whether the compiled operators are there; the first call loads them.

    Without them igfast works on plain PyTorch and says so in one warning; with IGFAST_REQUIRE_KERNELS=1 in the
    environment that is an error.

    Raises:
        KernelsError: they were built for another torch version, or are missing and required.
    """
    found = importlib.util.find_spec("igfast._C")
    if found is None or found.origin is None:
        message = f"igfast's compiled operators are not built; rebuild: {_REBUILD}"
        if os.environ.get("IGFAST_REQUIRE_KERNELS") == "1":
            raise KernelsError(message)
        warn(f"{message}. Until then slower plain PyTorch is used.")
        return False
    check_built_for(Path(found.origin), torch.__version__)
    importlib.import_module("igfast._C")
    importlib.import_module("igfast.ops._fake")
    return True


@functools.cache
def kernels_for(device_type: str) -> bool:
    """Whether there are compiled operators for a kind of device; a CUDA device and a build without warns once.

    Raises:
        KernelsError: as `kernels_loaded`; or a build without CUDA kernels, and IGFAST_REQUIRE_KERNELS=1.
    """
    if not kernels_loaded():
        return False
    if device_type == "cuda" and not build_info()["cuda"]:
        message = f"igfast was built without CUDA kernels; with nvcc, rebuild: IGFAST_CUDA=1 {_REBUILD}"
        if os.environ.get("IGFAST_REQUIRE_KERNELS") == "1":
            raise KernelsError(message)
        warn(f"{message}. Until then slower plain PyTorch is used on CUDA.")
        return False
    return device_type in ("cpu", "cuda")


def build_info() -> dict[str, object]:
    """What the compiled operators were built with and run on; empty where there are none.

    Keys: version, torch, compiler, isa (as chosen on this machine), cuda (whether there are CUDA kernels),
    cuda_architectures (the compute capabilities that they are for, with commas).
    """
    if not kernels_loaded():
        return {}
    return dict(importlib.import_module("igfast._C").build_info())
