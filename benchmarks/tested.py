"""Installs igfast beside other releases of Python and torch, as a user would, and runs a part of the tests there.

`python -m benchmarks.tested python3.12:2.11.0 python3.13:2.13.0`. Writes results/tested.jsonl.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks import harness

ROOT = Path(__file__).parent.parent
FOLDERS = ("attr", "baselines", "diagnosis", "explanation", "lean", "llm", "memory", "model", "ops", "run", "viz")
TESTS = (
    *(f"tests/{folder}" for folder in FOLDERS),
    "tests/properties",
    "tests/test_alibi.py",
    "tests/test_patching.py",
)
PACKAGES = ("pytest", "pytest-benchmark", "pytest-xdist", "hypothesis")


def environment(python: str, torch: str) -> Path:
    """The interpreter of a virtual environment with that torch and with igfast, built as `pip install .` does it."""
    folder = ROOT / "build" / "tested" / f"{Path(python).name}-torch-{torch}"
    interpreter = folder / "bin" / "python"
    if not interpreter.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"torch=={torch}", *PACKAGES], check=True)
    subprocess.run([interpreter, "-m", "pip", "uninstall", "--quiet", "--yes", "igfast"], check=True)
    subprocess.run([*pip, f"{ROOT}[explain,demo]"], check=True, env={**os.environ, "IGFAST_CUDA": "0"})
    return interpreter


def tested(python: str, torch: str) -> dict[str, Any]:
    """A record of the tests there, on a copy that does not see the sources."""
    interpreter = environment(python, torch)
    copy = interpreter.parent.parent / "tests-of-igfast"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "tests", copy / "tests")
    shutil.copy(ROOT / "pyproject.toml", copy)
    began = time.monotonic()
    command = [interpreter, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider", *TESTS]
    run = subprocess.run(
        command,
        cwd=copy,
        env={**os.environ, "IGFAST_REQUIRE_KERNELS": "1", "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print("\n".join(run.stdout.splitlines()[-30:]), flush=True)
    release = subprocess.run(
        [interpreter, "-c", "import platform; print(platform.python_version())"],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    counts = {
        word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", run.stdout.splitlines()[-1])
    }
    found = {"python": release.stdout.strip(), "torch": torch, "seconds": round(time.monotonic() - began)}
    return {"benchmark": "tested", "case": f"Python {found['python']}, torch {torch}", **found, "tests": counts}


def main() -> None:
    """Tests all pairs, and writes their records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="+", help="an interpreter and a release of torch each, as python3.12:2.11.0")
    for pair in parser.parse_args().pairs:
        python, _, torch = pair.rpartition(":")
        print(harness.update("tested", [tested(python, torch)]), flush=True)


if __name__ == "__main__":
    main()
