"""Runs the demo, and keeps its numbers and picture as results/demo.jsonl and results/demo.png."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from benchmarks import harness
from igfast.cli.demo_photograph import run_demo


def main() -> None:
    """Runs the demo and writes the records."""
    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder), n_steps=50, large_side=None)
        record = json.loads((Path(folder) / "record.json").read_text())
        shutil.copy(Path(folder) / "attribution.png", harness.RESULTS / "demo.png")
    print(harness.write("demo", [{"benchmark": "demo", **m} for m in record["measurements"]]))


if __name__ == "__main__":
    main()
