"""What the build makes of IGFAST_CUDA, without building."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
