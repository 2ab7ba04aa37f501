"""Functions that the benchmarks share: alternating timings, measurements in separate processes, records with origin."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import captum
import numpy as np
import psutil
import torch

import igfast
from igfast.ops import build_info

RESULTS = Path(__file__).parent / "results"
_MAY_BE_FASTEST = 1.15  # times the lowest ratio: calls this close may be the fastest in the next round


def _run(*command: str) -> str:
    """What a command prints, run in the project's folder; its errors and progress show through."""
    root = RESULTS.parent.parent
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=root).stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _commit() -> str:
    """The commit that is measured; "unknown" where the folder has no history, as a copy on another machine."""
    try:
        commit = _run("git", "rev-parse", "--short", "HEAD")
        changed = _run(
            "git", "status", "--porcelain", "--untracked-files=no", "--", "igfast", "csrc", "benchmarks/*.py"
        )
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown"
    return commit + ("+changes" if changed else "")


def origin() -> dict[str, Any]:
    """Where a record comes from: machine, versions and commit."""
    return {
        "machine": {
            "processor": _processor(),
            "cores": psutil.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
        },
        "versions": {
            "igfast": igfast.__version__,
            "torch": torch.__version__,
            "captum": captum.__version__,
            "python": platform.python_version(),
        },
        "kernels": build_info(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def alternate(cases: Mapping[str, Callable[[], object]], rounds: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of every case in every round, after one round that only warms up (calls of minutes do without).

    The cases take turns, every other round in reverse, so that a machine that slows down, for a while or steadily,
    slows all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for round_number in range(-1 if warm_up else 0, rounds):
        turns = list(cases.items())
        for name, case in turns if round_number % 2 == 0 else reversed(turns):
            began = time.perf_counter()
            case()
            if round_number >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def repeated(call: Callable[[], object], n_calls: int) -> Callable[[], None]:
    """So many calls as one, for calls too short to be timed by themselves."""

    def several() -> None:
        for _ in range(n_calls):
            call()

    return several


def ratio(seconds: Sequence[float], to: Sequence[float]) -> float:
    """The median of the rounds' ratios: a machine that slows down between rounds does not move it."""
    return statistics.median(a / b for a, b in zip(seconds, to, strict=True))


def beside(
    case: Callable[[], object],
    others: Mapping[str, Callable[[], object]],
    rounds: int,
    in_all_rounds: Collection[str] = (),
) -> tuple[list[float], dict[str, list[float]], dict[str, float]]:
    """Calls of a case before, between and after those of the others, for calls that outlast a machine's moods.

    The first round is of all others. The rounds after it are of those that may be the fastest, and those that are to be
    in all of them.

    Returns:
        The case's seconds, the others' seconds, and for each of the others the median of its ratios, each to the mean
        of the calls of the case just before and after it.
    """

    def seconds_of(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    own = [seconds_of(case)]
    seconds: dict[str, list[float]] = {name: [] for name in others}
    ratios: dict[str, list[float]] = {name: [] for name in others}
    contenders = dict(others)
    for _ in range(rounds):
        for name, other in contenders.items():
            seconds[name].append(seconds_of(other))
            own.append(seconds_of(case))
            ratios[name].append(seconds[name][-1] / statistics.mean(own[-2:]))
        least = min(statistics.median(of_name) for of_name in ratios.values())
        contenders = {
            name: others[name]
            for name in others
            if name in in_all_rounds or statistics.median(ratios[name]) <= _MAY_BE_FASTEST * least
        }
    return own, seconds, {name: statistics.median(of_name) for name, of_name in ratios.items()}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The 20th, 50th and 80th percentile."""
    return {f"p{p}": float(np.percentile(seconds, p)) for p in (20, 50, 80)}


@contextmanager
def beside_a_busy_process(is_wanted: bool) -> Iterator[None]:
    """Runs the block while another process keeps one core busy, if that is wanted."""
    command = [sys.executable, "-c", "while True: pass"]
    process = subprocess.Popen(command) if is_wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def in_own_process(module: str, *arguments: str) -> dict[str, Any]:
    """Runs `python -m module arguments`, whose last line of output is JSON, and returns that."""
    output: dict[str, Any] = json.loads(_run(sys.executable, "-m", module, *arguments).splitlines()[-1])
    return output


def write(name: str, records: Sequence[Mapping[str, Any]], folder: Path = RESULTS) -> Path:
    """Replaces <name>.jsonl; every record carries its origin, one that was read from a file its own."""
    path, where = folder / f"{name}.jsonl", origin()
    temporary = path.with_suffix(".part")  # a process that is stopped while it writes leaves the old records
    temporary.write_text("".join(json.dumps({**where, **record}) + "\n" for record in records))
    return temporary.replace(path)


def update(name: str, records: Sequence[Mapping[str, Any]], folder: Path = RESULTS) -> Path:
    """Writes records to <name>.jsonl in the place of those of the same cases, or after all others."""
    others = read(name, folder) if (folder / f"{name}.jsonl").exists() else []
    cases = _by_case(others) | _by_case(records)
    return write(name, [record for of_case in cases.values() for record in of_case], folder)


def _by_case(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        cases.setdefault(record["case"], []).append(record)
    return cases


def read(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The records of <name>.jsonl."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
