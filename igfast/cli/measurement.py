"""Measures one attribution of the demo's photograph in its own process, since peak memory is that of a process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import torch

import igfast
from igfast.cli.photograph import BLACK, DemoError, load_network, load_photograph
from igfast.memory.peak import peak_memory


@dataclass(frozen=True)
class Attribution:
    """One attribution to measure.

    Attributes:
        library: "igfast" or "captum".
        side: pixels on each side of the image.
        target: class to attribute.
        n_steps: points along the path.
        internal_batch_size: argument of `attribute`; None is the library's default.
    """

    library: str
    side: int
    target: int
    n_steps: int
    internal_batch_size: int | None = None


@dataclass(frozen=True)
class Measurement:
    """The result of measuring a job.

    Attributes:
        job: what was measured.
        seconds: wall time of the one call.
        peak_bytes: peak resident memory beyond that of the loaded model and image.
        delta: convergence delta.
        attributions: (3, side, side) float32.
    """

    job: Attribution
    seconds: float
    peak_bytes: int
    delta: float
    attributions: np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def measure(job: Attribution) -> Measurement:
    """Runs the job in a new process, whose progress bar stays visible, and returns its result.

    Raises:
        DemoError: the process failed; the message holds the exit status.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.npz"
        command = [sys.executable, "-m", "igfast.cli.measurement", json.dumps(asdict(job)), str(result)]
        imported_from = Path(igfast.__file__).parents[1]  # `-m` looks in the current folder first
        finished = subprocess.run(command, check=False, cwd=imported_from)
        if finished.returncode != 0 or not result.exists():
            raise DemoError(f"the measurement {job} failed with exit status {finished.returncode}")
        with np.load(result) as stored:
            return Measurement(
                job,
                float(stored["seconds"]),
                int(stored["peak_bytes"]),
                float(stored["delta"]),
                stored["attributions"],
            )


def _attribute(job: Attribution) -> dict[str, Any]:
    network, photograph = load_network(), load_photograph(job.side)
    explainer: Any
    if job.library == "igfast":
        explainer = igfast.IntegratedGradients(network, show_progress=True)
    else:
        explainer = captum.attr.IntegratedGradients(network)
    with torch.no_grad():  # warm-up for the libraries, on an image so small that the measured peak still counts in full
        network(photograph[:, :, :64, :64])
    with peak_memory() as memory:
        began = time.perf_counter()
        attributions, delta = explainer.attribute(
            photograph,
            baselines=BLACK,
            target=job.target,
            n_steps=job.n_steps,
            internal_batch_size=job.internal_batch_size,
            return_convergence_delta=True,
        )
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak_bytes": memory.over_before,
        "delta": float(delta),
        "attributions": attributions[0].float().numpy(),
    }


if __name__ == "__main__":
    np.savez(sys.argv[2], **_attribute(Attribution(**json.loads(sys.argv[1]))))
