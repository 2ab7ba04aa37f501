"""Pictures of attributions to the columns of a table and to signals."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from igfast.errors import ArgumentError, InputError
from igfast.explanation import Explanation
from igfast.viz.figures import (
    GREEN,
    RED,
    Array,
    as_array,
    described_target,
    height_of,
    largest,
    new_figure,
    row_of,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_MOST_LETTERS = 40  # of a name
_MOST_CHANNELS = 16  # of a signal, those with most attribution


def bars(
    explanation: Explanation | Any,
    names: Sequence[str] | None = None,
    values: Any = None,
    *,
    row: int = 0,
    most: int = 20,
    title: str | None = None,
) -> Figure:
    """Draws the attributions of one row of a table as horizontal bars, the strongest on top.

    Args:
        explanation: an `igfast.Explanation` of a table, or attributions, (columns,).
        names: of the columns; None takes the explanation's, or numbers. Long ones are shortened in the middle.
        values: of the columns in this row, numbers or texts, shown beside the names; None takes the explanation's
            inputs.
        row: the example.
        most: bars; the rest is one bar.
        title: over the picture; None says what was attributed.

    Returns:
        A figure.

    Raises:
        ArgumentError: another number of names or values than columns; `most` below 1; no such row.
        InputError: not one row; NaN or infinite attributions.

    Example:
        >>> figure = igfast.viz.bars([0.5, -0.2], ["rooms", "age"], [6, 65.2])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['rooms = 6', 'age = 65.2']
    """
    given: Any = explanation
    if isinstance(explanation, Explanation):
        given = row_of(explanation.attributions, row, "attributions")
        names = explanation.feature_names if names is None else names
        values = row_of(explanation.inputs, row, "inputs") if values is None else values
        title = described_target(explanation, row) if title is None else title
    scores = as_array(given, "attributions")
    if scores.ndim != 1:
        raise InputError(f"a row of a table has attributions (columns,); got shape {scores.shape}")
    if most < 1:
        raise ArgumentError(f"most must be at least 1; got {most}")
    labels = _labels(names, values, len(scores))
    order = np.argsort(-np.abs(scores), kind="stable")
    shown = [(labels[i], float(scores[i])) for i in order[:most]]
    if len(order) > most:
        shown.append((f"{len(order) - most} others", float(scores[order[most:]].sum())))
    width = max(6.4, 4.0 + 0.09 * max(len(label) for label, _ in shown))
    title = wrapped(title or "", width, 11)
    figure = new_figure(width, 1.1 + 0.28 * len(shown) + height_of(title, 11))
    axes = figure.subplots()
    heights = [score for _, score in shown]
    axes.barh(range(len(shown)), heights, color=[GREEN if score > 0 else RED for score in heights], height=0.7)
    axes.set_yticks(range(len(shown)), [label for label, _ in shown], parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color="0.3", linewidth=0.8)
    figure.supxlabel("attribution: green speaks for the output, red against it", fontsize=9)
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def series(
    explanation: Explanation | Any,
    signal: Any = None,
    *,
    row: int = 0,
    names: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draws a signal, each channel as a line whose colour is the attribution: green for the output, red against it.

    The last dimension is the time. It is the channels where there are as many names as these, and more times.

    Args:
        explanation: an `igfast.Explanation` of signals, (batch, channels, time) or (batch, time), or attributions of
            one, (channels, time) or (time,).
        signal: the signal, of the attributions' shape; None takes the explanation's input.
        row: the example.
        names: of the channels; None takes the explanation's, or numbers.
        title: over the picture; None says what was attributed.

    Returns:
        A figure.

    Raises:
        ArgumentError: no signal, or another number of names than channels; no such row.
        InputError: another shape than the signal's; NaN or infinite numbers.

    Example:
        >>> figure = igfast.viz.series(np.sin(np.arange(50)), np.cos(np.arange(50)))
        >>> len(figure.axes)
        1
    """
    given, known = explanation, None
    if isinstance(explanation, Explanation):
        given = row_of(explanation.attributions, row, "attributions")
        signal = row_of(explanation.inputs, row, "inputs") if signal is None else signal
        title = described_target(explanation, row) if title is None else title
        known = explanation.feature_names
    if signal is None:
        raise ArgumentError("signal is needed beside attributions without an explanation")
    scores, lines = (np.atleast_2d(as_array(v, n)) for v, n in ((given, "attributions"), (signal, "signal")))
    if scores.shape != lines.shape or scores.ndim != 2:
        raise InputError(f"signal must be (channels, time) like its attributions; got {lines.shape} and {scores.shape}")
    of_channels = known if names is None else names
    if of_channels is not None and len(of_channels) == lines.shape[1] < len(lines):  # (time, channels)
        scores, lines = scores.T, lines.T
    names = known if names is None and known is not None and len(known) == len(lines) else names
    labels = _labels(names, None, len(lines))
    order = np.sort(np.argsort(-np.abs(scores).sum(axis=1), kind="stable")[:_MOST_CHANNELS])
    left_out = (
        f"; {len(lines) - len(order)} channels with less attribution are not shown" if len(order) < len(lines) else ""
    )
    scores, lines, labels = scores[order], lines[order], [labels[i] for i in order]
    title = wrapped((title or "") + left_out, 8.0, 11)
    figure = new_figure(8.0, 0.7 + 1.3 * len(lines) + height_of(title, 11))
    most = largest(scores)
    rows = np.atleast_1d(figure.subplots(len(lines), 1, sharex=True))
    for axes, line, score, label in zip(rows, lines, scores, labels, strict=True):
        _draw_line(axes, line, score / most)
        axes.set_ylabel(label, fontsize=9, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def _draw_line(axes: Any, line: Array, strengths: Array) -> None:
    """Draws a signal as segments; thin and grey where it has no attribution."""
    from matplotlib.collections import LineCollection

    points = np.stack([np.arange(len(line)), line], axis=1)
    middle = (strengths[1:] + strengths[:-1]) / 2 if len(strengths) > 1 else strengths
    shares = np.abs(middle)[:, None] ** 0.6
    colours = np.where(middle[:, None] > 0, GREEN, RED) * shares + 0.75 * (1 - shares)
    segments = np.stack([points[:-1], points[1:]], axis=1)
    axes.add_collection(LineCollection(list(segments), colors=colours, linewidths=1 + 2.5 * shares[:, 0]))
    axes.autoscale_view()


def _labels(names: Sequence[str] | None, values: Any, n: int) -> list[str]:
    """Returns a label for each of n features: the name, and the value where values are given."""
    if names is not None and len(names) != n:
        raise ArgumentError(f"there are {len(names)} names for {n} attributions")
    labels = [_shortened(str(name)) for name in names] if names is not None else [str(i) for i in range(n)]
    if values is None:
        return labels
    listed = values.tolist() if hasattr(values, "tolist") else list(values)  # arrays, tensors, a row of a DataFrame
    if len(listed) != n or any(isinstance(value, (list, tuple)) for value in listed):
        raise ArgumentError(f"values must have shape {(n,)}; got {np.shape(listed)}")
    return [f"{label} = {_written(value)}" for label, value in zip(labels, listed, strict=True)]


def _written(value: Any) -> str:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return f"{value:.4g}" if is_number else _shortened(str(value))


def _shortened(text: str) -> str:
    """Returns a text without its middle if it is long."""
    half = _MOST_LETTERS // 2
    return text if len(text) <= _MOST_LETTERS else f"{text[:half]}…{text[-half:]}"
