"""Builds igfast._C: the CPU kernels always, the CUDA kernels as the environment variable IGFAST_CUDA says.

IGFAST_CUDA=auto (the default) builds CUDA kernels where that is possible and prints what it chose; 0 never builds
them; 1 builds them or fails and says what is missing; check builds them against a CPU build of torch too, where they
compile, link and load but find no CUDA tensor (`make cuda-check`). With IGFAST_WERROR=1, as in CI, a warning fails the
build; elsewhere a compiler may know more warnings than CI's.
"""

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11
from setuptools import setup

OLDEST = "2.11"  # of the releases of torch that igfast works with

if not sys.platform.startswith("linux"):
    raise SystemExit(f"igfast is for Linux, and this is {sys.platform}")


def torch_of_environment() -> ModuleType:
    """Returns the torch that igfast is compiled for: that of the environment which igfast is installed into.

    pip builds in an environment of its own, where that torch is not on the path. Another one would be of no use.
    """
    try:
        import torch
    except ImportError:
        sys.path += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()]
        try:
            import torch
        except ImportError:
            raise SystemExit(
                "igfast is compiled for the torch that it runs with, and found none. Install torch first, for instance "
                "`pip install torch`. Tools that hide the environment from a build (uv, python -m build) need "
                "`--no-build-isolation`, or `--no-isolation`, with ninja and pybind11 installed too"
            ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < tuple(map(int, OLDEST.split("."))):
        raise SystemExit(
            f"igfast is compiled for the torch that it runs with, {OLDEST} or later. This is {torch.__version__}: "
            "upgrade torch first"
        )
    return torch


torch = torch_of_environment()
from torch.utils import cpp_extension  # noqa: E402  # of the torch that was found

CHECKS_CUDA = os.environ.get("IGFAST_CUDA") == "check"
WARNINGS_ARE_ERRORS = os.environ.get("IGFAST_WERROR") == "1"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
SANITIZED = os.environ.get("IGFAST_SANITIZE") == "1"  # `make sanitize`
CUDA_SOURCES = sorted(str(path) for path in Path("csrc/cuda").glob("*.cu"))
CPU_SOURCES = sorted(str(path) for path in Path("csrc").rglob("*.cpp"))
HEADERS = sorted(str(path) for pattern in ("*.h", "*.cuh") for path in Path("csrc").rglob(pattern))


# Only those that nvcc knows are built. The first and the last are also built as PTX, for devices between and after.
ARCHITECTURES = ("5.0", "6.0", "7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "11.0", "12.0")


def missing_for_cpp() -> list[str]:
    """What stands between this environment and a build of C++ code; empty when nothing does."""
    missing = []
    compiler = shlex.split(os.environ.get("CXX") or "c++")[0]
    if shutil.which(compiler) is None:
        missing.append(f"the C++ compiler {compiler} (`apt install g++`, `dnf install gcc-c++`, `conda install gxx`)")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append("the headers of Python (`apt install python3-dev`, `dnf install python3-devel`)")
    return missing


def nvcc() -> str | None:
    """Where CUDA's compiler is: in CUDA_HOME, in the path, or where toolkits are put."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [f"{home}/bin" for home in homes] or [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(places))


def asked(compiler: str, question: str, pattern: str) -> str:
    """What a pattern finds in the compiler's answer."""
    command = [compiler, question, *(["-c", "any.cu"] if question == "--dryrun" else [])]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout
    found = re.search(pattern, said)
    return found[1] if found else ""


def library_folders(compiler: str) -> list[str]:
    """Where the toolkit's libraries are. The compiler says: what stands in the path may be a script that calls it."""
    folders = re.findall(r'-L([^"]+)"', asked(compiler, "--dryrun", r"LIBRARIES=(.*)"))
    return [folder for folder in folders if not folder.endswith("/stubs")]


def missing_for_cuda() -> list[str]:
    """What stands between this environment and a CUDA build; empty when nothing does."""
    missing = []
    if torch.version.cuda is None and not CHECKS_CUDA:
        missing.append(f"a CUDA build of torch (torch {torch.__version__} is a CPU build)")
    compiler = nvcc()
    if compiler is None:
        return [*missing, "nvcc (set CUDA_HOME to the CUDA toolkit's folder)"]
    version = asked(compiler, "--version", r"release (\d+\.\d+)")
    if torch.version.cuda is not None and version.split(".")[0] != torch.version.cuda.split(".")[0]:
        missing.append(f"a CUDA toolkit of torch's major version, {torch.version.cuda} (nvcc is of {version or '?'})")
    if not any(Path(folder, "libcudart.so").exists() for folder in library_folders(compiler)):
        missing.append("libcudart.so in the CUDA toolkit")
    return missing


def architectures(compiler: str) -> list[str]:
    """The compute capabilities to build for: "9.0" for machine code, "9.0+PTX" for PTX too.

    TORCH_CUDA_ARCH_LIST is honoured where it consists of such numbers.
    """
    chosen = re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip())
    if chosen != [""]:
        unknown = [arch for arch in chosen if not re.fullmatch(r"\d+\.\d[a-z]?(\+PTX)?", arch)]
        if unknown:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: {', '.join(unknown)} is not a compute capability such as 9.0+PTX")
        return chosen
    known = asked(compiler, "--list-gpu-arch", r"(?s)(.*)").split()
    built = [arch for arch in ARCHITECTURES if f"compute_{arch.replace('.', '')}" in known]
    if not built:
        raise SystemExit(f"{compiler} compiles for none of {', '.join(ARCHITECTURES)}; set TORCH_CUDA_ARCH_LIST")
    return [f"{arch}+PTX" if arch in (built[0], built[-1]) else arch for arch in built]


def wants_cuda() -> bool:
    """Whether to build the CUDA kernels, from IGFAST_CUDA and what is installed."""
    choice = os.environ.get("IGFAST_CUDA", "auto")
    if choice not in {"auto", "0", "1", "check"}:
        raise SystemExit(f"IGFAST_CUDA={choice!r} is not one of auto, 0, 1, check")
    if choice == "0":
        return False
    missing = missing_for_cuda()
    if choice in {"1", "check"} and missing:
        raise SystemExit(f"IGFAST_CUDA={choice}, but these are missing: {'; '.join(missing)}")
    if choice == "auto":
        chosen = f"CPU kernels only, missing for CUDA: {'; '.join(missing)}" if missing else "CPU and CUDA kernels"
        print(f"igfast: IGFAST_CUDA=auto builds {chosen}")
    return not missing


class BuildExtension(cpp_extension.BuildExtension):
    """torch's BuildExtension, which also compiles CUDA kernels and passes igfast's version to the compiler."""

    def build_extensions(self) -> None:
        """Adds the version and the objects of the CUDA kernels, and builds."""
        if missing := missing_for_cpp():
            raise SystemExit(f"igfast compiles C++ code, and these are missing: {'; '.join(missing)}")
        for extension in self.extensions:
            extension.define_macros += [
                ("IGFAST_VERSION", f'"{self.distribution.get_version()}"'),
                ("IGFAST_FOR_TORCH", f'"{torch.__version__}"'),  # another torch: every object is compiled anew
            ]
            extension.extra_objects += self.compiled_by_nvcc(extension.cuda_sources)
        super().build_extensions()

    def compiled_by_nvcc(self, sources: list[str]) -> list[str]:
        """Compiles each source to an object file; they include no header of torch, so this needs none of its flags."""
        if not sources:
            return []
        compiler = nvcc()
        generate = []
        for arch in architectures(compiler):
            number = arch.removesuffix("+PTX").replace(".", "")
            codes = [f"sm_{number}", *([f"compute_{number}"] if arch.endswith("+PTX") else [])]
            generate += [f"-gencode=arch=compute_{number},code=[{','.join(codes)}]"]
        errors = ["-Werror=all-warnings", "-Xcompiler=-Werror"] if WARNINGS_ARE_ERRORS else []
        warnings = ["-Wno-deprecated-gpu-targets", "-Xcompiler=-Wall,-Wextra", *errors]
        flags = ["-std=c++17", "-O3", "--threads=0", "-Xcompiler=-fPIC", *warnings]
        folder = Path(self.build_temp) / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        objects = []
        for source in sources:
            objects.append(str(folder / f"{Path(source).stem}.o"))
            command = [compiler, *flags, *generate, "-c", source, "-o", objects[-1]]
            print(*command)
            subprocess.run(command, check=True)
        return objects


def make_extension() -> cpp_extension.CppExtension:
    """The one extension module. Torch's and pybind11's headers are system headers, so warnings are about ours alone."""
    has_cuda = wants_cuda()
    system_includes = [pybind11.get_include(), *cpp_extension.include_paths()]
    extension = cpp_extension.CppExtension(
        name="igfast._C",
        sources=CPU_SOURCES,
        depends=HEADERS + CUDA_SOURCES,
        # -Wno-psabi: g++ notes that 64-byte vectors are passed differently without AVX-512; ours are always inlined.
        extra_compile_args=["-O3", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
        + (["-Werror"] if WARNINGS_ARE_ERRORS else [])
        + ([*SANITIZERS, "-O1", "-fno-omit-frame-pointer"] if SANITIZED else [])
        + [f"-isystem{path}" for path in system_includes],
        extra_link_args=["-fopenmp", *(SANITIZERS if SANITIZED else ["-s"])],
    )
    extension.include_dirs = []
    extension.cuda_sources = CUDA_SOURCES if has_cuda else []
    if has_cuda:
        built_for = ",".join(architectures(nvcc()))
        extension.define_macros += [("IGFAST_CUDA", None), ("IGFAST_CUDA_ARCHITECTURES", f'"{built_for}"')]
        extension.libraries.append("cudart")  # the dynamic loader finds the one that torch has loaded, by name
        extension.library_dirs += library_folders(nvcc())
        if CHECKS_CUDA:
            extension.runtime_library_dirs += library_folders(nvcc())
    return extension


# A wheel carries the torch that it was built for in its version (`make wheels`), and asks pip for that torch alone.
FOR_WHEEL = os.environ.get("IGFAST_WHEEL") == "1"
RELEASE = torch.__version__.split("+")[0]


def local_version(extension: cpp_extension.CppExtension) -> str:
    """Returns "+pt213cpu" for a wheel for torch 2.13 without CUDA kernels, and "" elsewhere."""
    if not FOR_WHEEL:
        return ""
    device = f"cu{(torch.version.cuda or '').replace('.', '')}" if extension.cuda_sources else "cpu"
    return f"+pt{''.join(RELEASE.split('.')[:2])}{device}"


REQUIRED_TORCH = f"torch=={RELEASE}" if FOR_WHEEL else f"torch>={OLDEST}"
EXTENSION = make_extension()
setup(
    version=f"0.1.0{local_version(EXTENSION)}",
    install_requires=[REQUIRED_TORCH, "numpy", "captum>=0.9", "tqdm", "psutil"],
    ext_modules=[EXTENSION],
    cmdclass={"build_ext": BuildExtension},
)
