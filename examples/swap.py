"""A script for Captum, as it is and with igfast in Captum's place: the same numbers in less memory.

The script, `examples/captum_script.py`, is not changed: `igfast run` swaps the classes.

    python -m examples.swap --out folder
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

SCRIPT = "examples.captum_script"
ROOT = Path(__file__).parent.parent


def run(out: Path) -> dict[str, float]:
    """Runs the script both ways, keeps what it printed, and returns how the two compare."""
    out.mkdir(parents=True, exist_ok=True)
    ways = {"captum": [SCRIPT], "igfast": ["igfast", "run", "-m", SCRIPT]}
    said = {}
    for name, way in ways.items():
        command = [sys.executable, "-m", *way]
        said[name] = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    (out / "swap.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    pairs = [
        (ours, theirs)
        for key in ("sums", "strongest", "smooth")
        for ours, theirs in zip(said["igfast"][key], said["captum"][key], strict=True)
    ]
    return {
        "largest relative difference": max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs),
        "peak memory, captum / igfast": said["captum"]["peak_mib"] / said["igfast"]["peak_mib"],
    }


def main() -> None:
    """Runs the walk-through, and fails if its claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("igfast-examples"))
    figures = run(parser.parse_args().out)
    print("\n".join(f"{name}: {value:.3g}" for name, value in figures.items()))
    assert figures["largest relative difference"] < 1e-3
    assert figures["peak memory, captum / igfast"] > 1.5


if __name__ == "__main__":
    main()
