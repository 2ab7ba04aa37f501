"""What the build makes of IGFAST_CUDA, without building."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def setup(choice):
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "IGFAST_CUDA": choice},
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_without_what_cuda_needs_is_an_error_that_names_it():
    if list((ROOT / "csrc" / "cuda").glob("*.cu")):
        pytest.skip("there are CUDA kernels now; what is missing depends on the machine")
    finished = setup("1")
    assert finished.returncode != 0
    assert "IGFAST_CUDA=1, but these are missing: CUDA kernels" in finished.stderr


def test_auto_says_what_it_chose():
    finished = setup("auto")
    assert finished.returncode == 0
    assert "igfast: IGFAST_CUDA=auto builds" in finished.stdout


def test_other_values_are_refused():
    assert "IGFAST_CUDA='maybe' is not one of auto, 0, 1" in setup("maybe").stderr
