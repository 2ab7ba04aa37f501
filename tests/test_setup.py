"""What the build makes of IGFAST_CUDA, without building."""

import os
import subprocess
import sys
from pathlib import Path

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
    finished = setup("1", CUDA_HOME=str(tmp_path))
    assert finished.returncode != 0
    assert "IGFAST_CUDA=1, but these are missing: " in finished.stderr
    assert "nvcc (set CUDA_HOME to the CUDA toolkit's folder)" in finished.stderr


def test_auto_says_what_it_chose():
    finished = setup("auto")
    assert finished.returncode == 0
    assert "igfast: IGFAST_CUDA=auto builds" in finished.stdout


def test_other_values_are_refused():
    assert "IGFAST_CUDA='maybe' is not one of auto, 0, 1, check" in setup("maybe").stderr
