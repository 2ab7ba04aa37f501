"""`python -m igfast demo`: attributes a photograph on a trained network, with igfast and with Captum."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import captum
import numpy as np
import torch

import igfast
from igfast import viz
from igfast.cli.measurement import Attribution, Measurement, measure
from igfast.cli.photograph import CAT_CLASSES, load_network, load_photograph, to_picture
from igfast.memory.machine import available_bytes

_SIDE = 224
_LARGE_SIDES = (512, 768, 1024, 1536, 2048, 3072, 4096)


def run_demo(out: Path, n_steps: int, large_side: int | None) -> None:
    """Attributes the photograph with igfast and Captum; writes `attribution.png` and `record.json` into `out`.

    Args:
        out: folder, created if missing.
        n_steps: points along the path.
        large_side: pixels on each side of the large image; None chooses one where Captum's default does not fit.
    """
    out.mkdir(parents=True, exist_ok=True)
    target, probability = _predict()
    name = CAT_CLASSES.get(target, f"class {target}")
    print(f"EfficientNet-Lite0 sees: {name} ({probability:.0%}). Attributing that to the pixels, {n_steps} steps.\n")

    small = [measure(Attribution(library, _SIDE, target, n_steps)) for library in ("igfast", "captum")]
    side = large_side or _side_beyond(small[1].peak_bytes)
    free = available_bytes()
    needed = _peak_at(side, small[1].peak_bytes)
    fits = needed < free
    large = [
        measure(Attribution("igfast", side, target, n_steps)),
        measure(Attribution("captum", side, target, n_steps, internal_batch_size=None if fits else 1)),
    ]
    print()
    for rows in (small, large):
        print(_table(rows))
    if not fits:
        print(
            f"At {side}x{side} Captum's default would need about {needed / 2**30:.0f} GiB, measured at {_SIDE}x{_SIDE} "
            f"and scaled by the pixels; {free / 2**30:.0f} GiB are free, so it ran with internal_batch_size=1.\n"
        )
    _draw(out / "attribution.png", small[0], name)
    _write_record(out / "record.json", [*small, *large])
    print(f"The picture is {out / 'attribution.png'}, the record {out / 'record.json'}.")


def _predict() -> tuple[int, float]:
    with torch.no_grad():
        probabilities = load_network()(load_photograph(_SIDE))[0]
    return int(probabilities.argmax()), float(probabilities.max())


def _peak_at(side: int, peak_bytes: int) -> int:
    """Returns the peak memory of Captum's default at another size: the peak grows with the number of pixels."""
    return round(peak_bytes * (side / _SIDE) ** 2)


def _side_beyond(peak_bytes: int) -> int:
    """Returns the smallest of the large sizes at which Captum's default does not fit, or else the largest of all."""
    free = available_bytes()
    return next((side for side in _LARGE_SIDES if _peak_at(side, peak_bytes) > free), _LARGE_SIDES[-1])


def _table(measurements: Sequence[Measurement]) -> str:
    side = measurements[-1].job.side
    lines = [
        f"{f'{side}x{side}':<32} {'seconds':>9} {'peak memory':>13} {'delta':>10} {'difference':>11}",
        *(_line(m, reference=measurements[-1]) for m in measurements),
    ]
    return "\n".join([*lines, ""])


def _line(m: Measurement, reference: Measurement) -> str:
    size = m.job.internal_batch_size
    label = m.job.library + ("" if size is None else f", internal_batch_size={size}")
    difference = "-" if m is reference else f"{_relative_difference(m, reference):.1e}"
    return f"{label:<32} {m.seconds:>9.2f} {m.peak_bytes / 2**20:>9.0f} MiB {m.delta:>10.1e} {difference:>11}"


def _relative_difference(m: Measurement, reference: Measurement) -> float:
    return float(np.linalg.norm(m.attributions - reference.attributions) / np.linalg.norm(reference.attributions))


def _draw(path: Path, m: Measurement, name: str) -> None:
    """Draws the photograph beside its attribution: green speaks for the class, red against the class."""
    picture = to_picture(load_photograph(m.job.side))
    viz.save(viz.image(m.attributions, picture, title=f"attribution to {name}"), path)


def _write_record(path: Path, measurements: Sequence[Measurement]) -> None:
    record = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {
            "igfast": igfast.__version__,
            "captum": captum.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "measurements": [
            {**asdict(m.job), "seconds": m.seconds, "peak_bytes": m.peak_bytes, "delta": m.delta} for m in measurements
        ],
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
