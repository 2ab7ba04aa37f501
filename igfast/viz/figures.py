"""Figures of matplotlib, made without its global state, and what all pictures share."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from igfast.errors import ArgumentError, ArgumentTypeError, InputError
from igfast.explanation import Explanation
from igfast.explanation.explain import flattened
from igfast.explanation.result import named_target, target_of
from igfast.packages import needed
from igfast.request.inputs import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
GREEN, RED = (0.0, 0.62, 0.25), (0.86, 0.10, 0.13)


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure, in inches, that no window knows of."""
    made: Figure = needed("matplotlib.figure", "to draw pictures").Figure(figsize=(width, height), layout="constrained")
    return made


def save(figure: Figure, path: str | Path, *, dpi: int = 150) -> None:
    """Writes a figure to a file, in the format that its ending names; makes the folder if there is none.

    Args:
        figure: what a function of `igfast.viz` returned.
        path: ends in .png, .svg, .pdf or another ending that matplotlib knows.
        dpi: pixels per inch, for formats with pixels.

    Raises:
        ArgumentError: matplotlib does not know the ending.

    Example:
        >>> figure = igfast.viz.bars([0.5, -0.2], ["rooms", "age"])
        >>> igfast.viz.save(figure, tmp_path / "bars.png")
    """
    known = figure.canvas.get_supported_filetypes()
    ending = Path(path).suffix.lstrip(".").lower()
    if ending not in known:
        raise ArgumentError(f"path must end in one of {sorted(known)}; got {str(path)!r}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


def as_array(value: Any, name: str) -> Array:
    """Returns a tensor, an array or a list of numbers as a float64 array; raises ArgumentTypeError, InputError."""
    if isinstance(value, Tensor):
        if value.is_complex():
            raise InputError(f"{name} is {describe(value)}; pass its real part, say")
        value = value.detach().to("cpu", torch.float64).numpy()
    try:
        array: Array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{name} must be a tensor, an array or numbers; got {describe(value)}") from None
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinite numbers, which have no colour")
    return array


def check_explanation(value: Any) -> None:
    """Raises ArgumentTypeError for what is no explanation."""
    if not isinstance(value, Explanation):
        raise ArgumentTypeError(
            f"explanation must be an igfast.Explanation, as explain returns it; got {describe(value)}"
        )


def row_of(value: Any, row: int, what: str) -> Any:
    """Returns one example of a tensor; raises ArgumentError if there is none of that number."""
    if not isinstance(value, Tensor):
        raise ArgumentError(f"the explanation has several {what}; pass one of them")
    if not -value.shape[0] <= row < value.shape[0]:
        raise ArgumentError(f"row must be one of the {value.shape[0]} examples; got {row}")
    return value[row]


def described_target(explanation: Explanation, row: int) -> str:
    """Returns what was attributed for an example, and how far completeness holds, as a title has it."""
    try:
        target = target_of(explanation, row, rows_of(explanation))
    except IndexError:
        return "a target for each entry of the output"
    word = "neuron" if explanation.meta["method"].startswith("Neuron") else "target"
    named = "the output" if target is None else f"{word} {named_target(target, explanation.target_names)}"
    if not len(explanation.deltas) == len(explanation.predictions) == rows_of(explanation):
        return named
    value, start, delta = (
        float(each[row]) for each in (explanation.predictions, explanation.baseline_predictions, explanation.deltas)
    )
    return f"{named}: {value:.3g} from {start:.3g}, delta {delta:.1g}"


def rows_of(explanation: Explanation) -> int:
    """Returns the number of examples: the rows of the attributions."""
    return int(flattened(explanation.attributions)[0].shape[0])


def wrapped(text: str, inches: float, points: float) -> str:
    """Returns a text in lines that fit a width, for letters of a size."""
    return textwrap.fill(text, max(20, int(inches * 135 / points)), break_long_words=False)


def height_of(text: str, points: float) -> float:
    """Returns how many inches the lines after the first take."""
    return text.count("\n") * 1.25 * points / 72


def largest(values: Array) -> float:
    """Returns the largest absolute value, or 1 where all are zero."""
    return float(np.abs(values).max(initial=0.0)) or 1.0
