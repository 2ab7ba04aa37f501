"""The time of this checkout's calls over another checkout's, on five networks: processes of the two take turns.

`python -m benchmarks.bench_versions --other FOLDER`, where FOLDER is a checkout with its extension built in place.
Writes results/versions.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAMES = (
    "EfficientNet-Lite0, 224x224",
    "ResNet-50, 224x224",
    "VGG-16, 224x224",
    "BERT-base, 128 tokens",
    "ViT-B/16, 224x224",
)
N_STEPS, CALLS = 30, 3


def seconds_of_calls(name: str) -> list[float]:
    """Of a few calls of the igfast that is on the path, after one that warms up."""
    import igfast
    from benchmarks import bench_networks

    call, seconds = bench_networks.NETWORKS[name]()(igfast), []
    for _ in range(CALLS + 1):
        began = time.perf_counter()
        call(n_steps=N_STEPS)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def in_checkout(folder: Path, name: str) -> float:
    """The median seconds of a call in a process of a checkout's own."""
    command = [sys.executable, __file__, "--seconds", name]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    output = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return statistics.median(json.loads(output.splitlines()[-1]))


def main() -> None:
    """Measures all networks, or some, and writes the records; or prints the seconds of one, for such a process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=lambda path: Path(path).resolve(), help="the other checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seconds", metavar="NETWORK", help="for the processes")
    options = parser.parse_args()
    if options.seconds is not None:
        print(json.dumps(seconds_of_calls(options.seconds)))
        return
    from benchmarks import harness

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=options.other, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    for name in options.networks:
        taken: dict[Path, list[float]] = {ROOT: [], options.other: []}
        for _ in range(options.rounds):
            for folder, medians in taken.items():
                medians.append(in_checkout(folder, name))
        ratio = harness.ratio(taken[ROOT], taken[options.other])
        print(f"{name:<30} {ratio:.3f} {taken}", flush=True)
        record = {"benchmark": "versions", "case": f"{name}, {N_STEPS} steps, float32", "network": name}
        seconds = {"seconds": taken[ROOT], "other_seconds": taken[options.other]}
        harness.update("versions", [{**record, "other_commit": commit, "time_ratio": ratio, **seconds}])


if __name__ == "__main__":
    main()
