"""A picture of what each token of a prompt says for each token of an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from igfast.errors import ArgumentError, InputError
from igfast.packages import needed
from igfast.viz.figures import GREEN, RED, as_array, largest, new_figure
from igfast.viz.texts import one_line, readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL = 0.42  # inches
_MOST_CELLS_WITH_NUMBERS = 400


def token_matrix(
    result: Any,
    input_tokens: Sequence[str] | None = None,
    output_tokens: Sequence[str] | None = None,
    *,
    title: str = "",
) -> Figure:
    """Returns a figure with a row for each token of an answer and a column for each token of its prompt.

    Args:
        result: an `igfast.LLMAttributionResult` (or Captum's) with `token_attr`; or attributions, (outputs, inputs).
        input_tokens: the prompt's tokens, as the tokenizer writes them; None takes the result's.
        output_tokens: the answer's tokens, likewise.
        title: above the picture.

    Raises:
        ArgumentError: the result has no `token_attr`, or there are no tokens, or not one for each row and column.
        InputError: not a matrix.
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> figure = igfast.viz.token_matrix([[0.5, -0.2]], ["ĠFrance", "Ġis"], ["ĠParis"])
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['France', 'is']
    """
    given = result
    if hasattr(result, "token_attr"):
        given = result.token_attr
        if given is None:
            raise ArgumentError("the result has no token_attr: call attribute with per_token=True")
    values = as_array(given, "attributions")
    if values.ndim != 2:
        raise InputError(f"attributions must be (outputs, inputs); got shape {values.shape}")
    rows = _shown(output_tokens, getattr(result, "output_tokens", None))
    columns = _shown(input_tokens, getattr(result, "input_tokens", None))
    if rows is None or columns is None:
        raise ArgumentError("attributions alone need input_tokens and output_tokens")
    if values.shape != (len(rows), len(columns)):
        raise ArgumentError(f"attributions are {values.shape}, for {len(rows)} output and {len(columns)} input tokens")
    longest = max(map(len, rows), default=0)
    figure = new_figure(_CELL * len(columns) + 0.11 * longest + 1.2, _CELL * len(rows) + 1.4 + (0.3 if title else 0))
    axes = figure.subplots()
    colours = needed("matplotlib.colors", "to draw pictures").LinearSegmentedColormap.from_list(
        "igfast", [RED, (0.97, 0.97, 0.97), GREEN]
    )
    most = largest(values)
    drawn = axes.imshow(values, cmap=colours, vmin=-most, vmax=most, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="left", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0)
    axes.spines[:].set_visible(False)
    if values.size <= _MOST_CELLS_WITH_NUMBERS:
        digits = min(4, max(1, 1 - math.floor(math.log10(most)))) if most > 0 else 1  # two of the largest
        for (row, column), value in ((place, values[place]) for place in _places(values.shape)):
            axes.text(
                column,
                row,
                f"{round(value, digits) + 0.0:.{digits}f}",
                ha="center",
                va="center",
                fontsize=7,
                color="#111111",
            )
    figure.colorbar(drawn, ax=axes, shrink=0.8)
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def _shown(given: Sequence[str] | None, of_result: Sequence[str] | None) -> list[str] | None:
    """Returns the caller's tokens, which may be as a tokenizer writes them, or a result's, which are decoded."""
    if given is not None:
        return readable(given)
    return None if of_result is None else [one_line(token) for token in of_result]


def _places(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(row, column) for row in range(shape[0]) for column in range(shape[1])]
