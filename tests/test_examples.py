"""The walk-throughs run offline, and hold what they claim."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PICTURES = {
    "regression": ["regression.png", "row.png"],
    "cat": ["cat-black.png", "cat-noise.png", "cat-blurred.png"],
    "topics": ["topics.png", "topics.html"],
    "sentiment": ["sentiment.png", "sentiment.html"],
    "swap": ["swap.json"],
    "alibi_script": ["alibi.json", "digit.png"],
    "large_image": ["large-image.png"],
}


@pytest.mark.parametrize("name", PICTURES)
def test_walk_through(name, tmp_path):
    command = [sys.executable, "-m", f"examples.{name}", "--out", str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert {path.name for path in tmp_path.iterdir()} == set(PICTURES[name])


def test_every_walk_through_is_tested_and_has_a_place_in_the_pages():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__", "captum_script"}
    page = (ROOT / "docs" / "examples.md").read_text()
    assert scripts == set(PICTURES)
    assert all(f"examples/{name}.py" in page for name in scripts)
