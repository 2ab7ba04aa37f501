"""What the build makes of its environment, without building."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def setup(choice, **environment):
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "IGFAST_CUDA": choice, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_without_what_cuda_needs_is_an_error_that_names_it(tmp_path):
    finished = setup("1", CUDA_HOME=str(tmp_path), CUDA_PATH=str(tmp_path))
    assert finished.returncode != 0
    assert "IGFAST_CUDA=1, but these are missing: " in finished.stderr
    assert "nvcc (set CUDA_HOME to the CUDA toolkit's folder)" in finished.stderr


@pytest.fixture
def toolkit(tmp_path):
    """A folder that looks like a CUDA toolkit 13.0."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "libcudart.so").touch()
    compiler = tmp_path / "bin" / "nvcc"
    compiler.write_text(
        f"""#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
--dryrun) echo '#$ LIBRARIES=  "-L{tmp_path}/stubs" "-L{tmp_path}"' >&2 ;;
--list-gpu-arch) printf "compute_75\\ncompute_90\\n" ;;
esac
"""
    )
    compiler.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("cuda_of_torch", "says"),
    [
        ("13.1", "builds CPU and CUDA kernels"),
        ("12.8", "missing for CUDA: a CUDA toolkit of torch's major version, 12.8 (nvcc is of 13.0)"),
    ],
)
def test_the_toolkit_must_be_of_the_major_version_of_torch(toolkit, cuda_of_torch, says):
    code = f"""
import runpy, sys, torch
torch.version.cuda = "{cuda_of_torch}"
sys.argv = ["setup.py", "--version"]
print(runpy.run_path("setup.py")["architectures"]("{toolkit}/bin/nvcc"))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_CUDA_ARCH_LIST"}
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environment, "IGFAST_CUDA": "auto", "CUDA_HOME": str(toolkit)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert says in finished.stdout
    assert "['7.5+PTX', '9.0+PTX']" in finished.stdout


def test_auto_says_what_it_chose():
    finished = setup("auto")
    assert finished.returncode == 0
    assert "igfast: IGFAST_CUDA=auto builds" in finished.stdout


def test_other_values_are_refused():
    assert "IGFAST_CUDA='maybe' is not one of auto, 0, 1, check" in setup("maybe").stderr


def test_a_missing_compiler_is_named(tmp_path):
    finished = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path],
        cwd=ROOT,
        env={**os.environ, "IGFAST_CUDA": "0", "CXX": "nowhere-g++"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode != 0
    assert (
        "igfast compiles C++ code, and these are missing: the C++ compiler nowhere-g++ (`apt install" in finished.stderr
    )


# As pip builds: the interpreter of the environment, without what is installed there but for the build's own packages.
ISOLATED = """
import runpy, sys
sys.path = [sys.argv[1], *(path for path in sys.path if "site-packages" not in path)]
sys.argv = ["setup.py", "--version"]
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.fixture
def of_build(tmp_path):
    """The packages that pyproject.toml asks for, alone."""
    installed = Path(sysconfig.get_path("purelib"))
    for name in ("setuptools", "_distutils_hack", "pybind11", "distutils-precedence.pth"):
        if (installed / name).exists():
            (tmp_path / name).symlink_to(installed / name)
    return tmp_path


@pytest.mark.parametrize("torch_is_there", [True, False])
def test_an_isolated_build_finds_the_torch_of_the_environment(of_build, torch_is_there):
    if not torch_is_there:
        (of_build / "torch.py").write_text("raise ImportError('none here')")
    finished = subprocess.run(
        [sys.executable, "-c", ISOLATED, of_build],
        cwd=ROOT,
        env={**os.environ, "IGFAST_CUDA": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if torch_is_there:
        assert finished.stdout.splitlines()[-1] == "0.1.0", finished.stderr
    else:
        assert "found none. Install torch first, for instance `pip install torch`" in finished.stderr


def test_a_wheel_names_the_torch_that_it_was_built_for():
    finished = setup("0", IGFAST_WHEEL="1")
    major, minor = torch.__version__.split(".")[:2]
    assert finished.stdout.splitlines()[-1] == f"0.1.0+pt{major}{minor}cpu"


def test_an_older_torch_is_an_error_before_the_build():
    code = """
import runpy, sys, torch
torch.__version__ = "2.8.0"
sys.argv = ["setup.py", "--version"]
runpy.run_path("setup.py", run_name="__main__")
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert "2.11 or later. This is 2.8.0: upgrade torch first" in finished.stderr


def test_another_system_is_an_error():
    code = "import runpy, sys, setuptools, pybind11; sys.platform = 'darwin'; runpy.run_path('setup.py')"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "igfast is for Linux, and this is darwin" in finished.stderr


def test_the_torch_that_objects_were_compiled_for_is_in_the_command():
    code = """
import runpy, sys
sys.argv = ["setup.py", "--version"]
command = runpy.run_path("setup.py")["BuildExtension"]
from torch.utils import cpp_extension
cpp_extension.BuildExtension.build_extensions = lambda self: print(self.extensions[0].define_macros)
from setuptools.dist import Distribution
import types
extension = types.SimpleNamespace(define_macros=[], extra_objects=[], cuda_sources=[])
made = command(Distribution({"version": "1"}))
made.extensions = [extension]
made.build_extensions()
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"('IGFAST_FOR_TORCH', '\"{torch.__version__}\"')" in finished.stdout
