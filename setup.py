"""Builds igfast._C: the CPU kernels always, the CUDA kernels as the environment variable IGFAST_CUDA says.

IGFAST_CUDA=auto (the default) builds CUDA kernels where that is possible and prints what it chose; 0 never builds
them; 1 builds them or fails and says what is missing.
"""

import os
import shutil
from pathlib import Path

import pybind11
import torch
from setuptools import setup
from torch.utils import cpp_extension

CUDA_SOURCES = sorted(str(path) for path in Path("csrc/cuda").glob("*.cu"))
CPU_SOURCES = sorted(str(path) for folder in ("csrc", "csrc/cpu") for path in Path(folder).glob("*.cpp"))
HEADERS = sorted(str(path) for path in Path("csrc").rglob("*.h"))


def missing_for_cuda() -> list[str]:
    """What stands between this environment and a CUDA build; empty when nothing does."""
    missing = []
    if not CUDA_SOURCES:
        missing.append("CUDA kernels (this version of igfast has none yet)")
    if torch.version.cuda is None:
        missing.append(f"a CUDA build of torch (torch {torch.__version__} is a CPU build)")
    if cpp_extension.CUDA_HOME is None or shutil.which("nvcc", path=f"{cpp_extension.CUDA_HOME}/bin") is None:
        missing.append("nvcc (set CUDA_HOME to the CUDA toolkit)")
    return missing


def wants_cuda() -> bool:
    """Whether to build the CUDA kernels, from IGFAST_CUDA and what is installed."""
    choice = os.environ.get("IGFAST_CUDA", "auto")
    if choice not in {"auto", "0", "1"}:
        raise SystemExit(f"IGFAST_CUDA={choice!r} is not one of auto, 0, 1")
    missing = missing_for_cuda()
    if choice == "1" and missing:
        raise SystemExit(f"IGFAST_CUDA=1, but these are missing: {'; '.join(missing)}")
    if choice == "auto":
        chosen = f"CPU kernels only, missing for CUDA: {'; '.join(missing)}" if missing else "CPU and CUDA kernels"
        print(f"igfast: IGFAST_CUDA=auto builds {chosen}")
    return choice != "0" and not missing


class BuildExtension(cpp_extension.BuildExtension):
    """torch's BuildExtension, with igfast's version from pyproject.toml passed to the compiler."""

    def build_extensions(self) -> None:
        """Adds the version and builds."""
        for extension in self.extensions:
            extension.define_macros.append(("IGFAST_VERSION", f'"{self.distribution.get_version()}"'))
        super().build_extensions()


def make_extension() -> cpp_extension.CppExtension:
    """The one extension module. Torch's and pybind11's headers are system headers, so -Werror judges only ours."""
    wants_cuda()
    system_includes = [pybind11.get_include(), *cpp_extension.include_paths()]
    extension = cpp_extension.CppExtension(
        name="igfast._C",
        sources=CPU_SOURCES,
        depends=HEADERS,
        # -Wno-psabi: g++ notes that 64-byte vectors are passed differently without AVX-512; ours are always inlined.
        extra_compile_args=["-O3", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
        + [f"-isystem{path}" for path in system_includes],
        extra_link_args=["-fopenmp", "-s"],
    )
    extension.include_dirs = []
    return extension


setup(ext_modules=[make_extension()], cmdclass={"build_ext": BuildExtension})
