"""Picks the picture that fits what an explanation holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from igfast.errors import ArgumentError
from igfast.explanation import Explanation
from igfast.viz.charts import bars, series
from igfast.viz.figures import check_explanation
from igfast.viz.images import image
from igfast.viz.texts import text_figure, tokens_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(explanation: Explanation, *, row: int = 0, **options: Any) -> Figure:
    """Draws an explanation as what it holds: an image, a text, a signal, or a row of a table.

    Texts need `feature_names`, the tokens. (batch, 1 or 3, height, width) is an image and (batch, columns) a table.
    (batch, channels, time) is a signal, and so is (batch, time, channels) with a name for each channel.

    Args:
        explanation: the explanation.
        row: the example.
        **options: of `igfast.viz.image`, `tokens_of`, `series` or `bars`.

    Returns:
        A figure.

    Raises:
        ArgumentTypeError: not an explanation.
        ArgumentError: there is no picture for such shapes, or no such row.
        And whatever that function raises.

    Example:
        >>> explanation = igfast.IntegratedGradients(torch.nn.Linear(3, 2)).explain(torch.ones(1, 3), target=0)
        >>> len(igfast.viz.plot(explanation).axes)
        1
    """
    check_explanation(explanation)
    kind = kind_of(explanation)
    if kind == "text":
        return text_figure(tokens_of(explanation, row=row, **options))
    draw = {"image": image, "series": series, "table": bars}[kind]
    return draw(explanation, row=row, **options)  # type: ignore[no-any-return, operator]


def kind_of(explanation: Explanation) -> str:
    """Returns "image", "text", "series" or "table", by the shapes; raises ArgumentError where none fits."""
    attributions, inputs, names = explanation.attributions, explanation.inputs, explanation.feature_names
    if isinstance(attributions, Tensor) and names and isinstance(names[0], tuple):
        return "text"
    if not isinstance(attributions, Tensor) or not isinstance(inputs, Tensor):
        raise ArgumentError("the explanation has several tensors; draw one of them with a function of igfast.viz")
    if attributions.shape != inputs.shape:
        if attributions.dim() == 3:
            raise ArgumentError(
                "a picture of a text's attributions at a layer needs feature_names with its tokens: [tokens] for one"
            )
        raise ArgumentError(
            f"there is no picture for a layer's attributions of shape {tuple(attributions.shape)}; igfast.viz.image "
            "draws maps that are interpolated to a picture's size"
        )
    if inputs.dim() == 4 and inputs.shape[1] in (1, 3):
        return "image"
    if inputs.dim() == 3:
        return "series"
    if inputs.dim() == 2:
        return "table"
    raise ArgumentError(f"there is no picture for inputs of shape {tuple(inputs.shape)}")
