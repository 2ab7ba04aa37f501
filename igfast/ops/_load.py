"""Loads the compiled operators igfast._C once, or says why they cannot be loaded."""

from __future__ import annotations

import functools
import importlib.util
import mmap
import os
import re
from pathlib import Path

import torch

from igfast.errors import KernelsError, warn

_FOLDER = Path(__file__).parents[2]
_IN_SOURCES = (_FOLDER / "setup.py").exists()
_REBUILD = (  # Python that is started in the source folder imports that folder, which only `-e` compiles for
    f"pip install --no-deps -e . in {_FOLDER}, from where Python imports igfast"
    if _IN_SOURCES
    else "pip install --no-deps --force-reinstall --no-cache-dir . in igfast's source folder"
)
_NEWEST_TESTED = (2, 15)
_MARK = re.compile(rb"igfast-built-for-torch=([^;]+);")


def _release(version: str) -> str:
    """Returns the release that a version string names: '2.13.0' for both '2.13.0+cpu' and '2.13.0'."""
    return version.split("+")[0]


def built_for_torch(extension: Path) -> str:
    """Returns the torch version that a file was built for, read from its bytes: loading a wrong one could crash."""
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


def _are_required() -> bool:
    """Returns whether the environment says that plain PyTorch will not do; any value but 0, false and no does."""
    return os.environ.get("IGFAST_REQUIRE_KERNELS", "").lower() not in ("", "0", "false", "no")


@functools.cache
def kernels_loaded() -> bool:
    """Returns whether the compiled operators are available; the first call loads them.

    Without compiled operators igfast warns once and falls back to plain PyTorch. With the environment variable
    IGFAST_REQUIRE_KERNELS=1, missing operators are an error.

    Raises:
        KernelsError: the operators were built for another torch, cannot be loaded, or are missing and required.
    """
    found = importlib.util.find_spec("igfast._C")
    if found is None or found.origin is None:
        message = f"igfast's compiled operators are not built; build them: {_REBUILD}"
        if _are_required():
            raise KernelsError(message)
        warn(f"{message}. Until then slower plain PyTorch is used.")
        return False
    check_built_for(Path(found.origin), torch.__version__)
    try:
        importlib.import_module("igfast._C")
    except ImportError as error:  # for instance operators built for CUDA under a CPU build of torch
        raise KernelsError(
            f"igfast's compiled operators cannot be loaded: {error}. Rebuild them: {_REBUILD}"
        ) from error
    importlib.import_module("igfast.ops._fake")
    if is_untested(torch.__version__):
        newest = ".".join(map(str, _NEWEST_TESTED))
        warn(f"igfast was tested up to torch {newest}, and torch {torch.__version__} is running")
    return True


def is_untested(version: str) -> bool:
    """Returns whether a torch version is newer than those that igfast was tested with."""
    return tuple(map(int, version.split(".")[:2])) > _NEWEST_TESTED


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Returns whether a device runs code that was built for compute capabilities such as "8.0,9.0+PTX".

    Machine code runs on later devices of the same major version, PTX on all later ones.
    """
    built = re.findall(r"(\d+)\.(\d)[a-z]?(\+PTX)?", architectures)
    versions = [((int(major), int(minor)), ptx) for major, minor, ptx in built]
    return any(v <= capability and (ptx or v[0] == capability[0]) for v, ptx in versions)


@functools.cache
def kernels_for(device: torch.device) -> bool:
    """Returns whether a device has compiled operators; warns once for a CUDA device that the build does not cover.

    Raises:
        KernelsError: as `kernels_loaded`; or the build does not cover this CUDA device, and IGFAST_REQUIRE_KERNELS=1.
    """
    if not kernels_loaded() or device.type not in ("cpu", "cuda"):
        return False
    if device.type == "cpu":
        return True
    info = build_info()
    if info["cuda"] and runs_on(str(info["cuda_architectures"]), torch.cuda.get_device_capability(device)):
        return True
    built_for = f"for compute capabilities {info['cuda_architectures']}" if info["cuda"] else "without CUDA kernels"
    message = f"igfast was built {built_for}, and has none for {device}; with nvcc, rebuild: IGFAST_CUDA=1 {_REBUILD}"
    if _are_required():
        raise KernelsError(message)
    warn(f"{message}. Until then slower plain PyTorch is used there.")
    return False


def build_info() -> dict[str, object]:
    """Returns how the compiled operators were built and what they run on; empty without compiled operators.

    Keys: version, torch, compiler, isa (the instruction set chosen on this machine), cuda (whether there are CUDA
    kernels), cuda_architectures (compute capabilities of the CUDA kernels, separated by commas).
    """
    if not kernels_loaded():
        return {}
    return dict(importlib.import_module("igfast._C").build_info())
