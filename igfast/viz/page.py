"""One page of HTML for an explanation, which works without a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

from igfast.errors import ArgumentError, InputError
from igfast.explanation import Explanation
from igfast.packages import needed
from igfast.viz.figures import check_explanation, described_target, rows_of
from igfast.viz.plot import kind_of, plot
from igfast.viz.texts import text_html, tokens_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_EXAMPLES = 50
SIGNS = "Green speaks for, red against"
_PANELS = {
    "input": "The image for",
    "overlay": SIGNS,
    "outlines": "Outlines of what speaks most for and against",
}


@dataclass(frozen=True)
class _Example:
    """One example of the page: pictures as data addresses with what they show, or coloured text."""

    title: str
    pictures: tuple[tuple[str, str], ...]
    text: str


def report(
    explanation: Explanation,
    *,
    rows: Sequence[int] | None = None,
    title: str = "Explanation",
    picture: Callable[[Tensor], Any] | None = None,
) -> str:
    """Returns a page of HTML: the pictures, how far completeness holds, and how the attributions were computed.

    The page holds all that it shows, so it works offline. It follows the reader's choice of light or dark, can be read
    on a phone and used by keyboard. Names and tokens are escaped.

    Args:
        explanation: what to show.
        rows: the examples; None shows all, up to 50.
        title: of the page.
        picture: of images, gives the pixels to show for the input of an example, as `igfast.viz.image` takes them:
            `lambda x: x * std + mean` undoes a normalisation. None scales the input to [0, 1].

    Returns:
        The page, to be written as UTF-8.

    Raises:
        ArgumentTypeError: not an explanation.
        ArgumentError: no such row.
        MissingPackageError: jinja2, matplotlib or scipy is not installed.

    Example:
        >>> explanation = igfast.IntegratedGradients(torch.nn.Linear(3, 2)).explain(torch.ones(1, 3), target=0)
        >>> page = igfast.viz.report(explanation, title="Three columns")
        >>> page.startswith("<!doctype html>"), "Three columns" in page
        (True, True)
    """
    check_explanation(explanation)
    n_examples = rows_of(explanation)
    shown = range(min(n_examples, _MOST_EXAMPLES)) if rows is None else rows
    if any(not 0 <= row < n_examples for row in shown):
        raise ArgumentError(f"rows must be some of the {n_examples} examples; got {list(shown)}")
    n_left_out = n_examples - len(shown) if rows is None else 0
    return rendered("content.html", title=title, **_values(explanation, shown, n_left_out, picture))


def fragment(explanation: Explanation) -> str:
    """Returns the middle of the page, for notebooks."""
    n_examples = rows_of(explanation)
    shown = range(min(n_examples, 1))
    values = _values(explanation, shown, n_examples - len(shown), None)
    return _of_template("content.html", **values)


def rendered(content: str, **values: Any) -> str:
    """Returns a page with the template `content`."""
    return _of_template("page.html", content=content, **values)


def _of_template(name: str, **values: Any) -> str:
    jinja2 = needed("jinja2", "to make pages")
    environment = jinja2.Environment(loader=jinja2.PackageLoader("igfast.viz"), autoescape=True, trim_blocks=True)
    page: str = environment.get_template(name).render(**values)
    return page


def _values(
    explanation: Explanation, shown: Sequence[int], n_left_out: int, picture: Callable[[Tensor], Any] | None
) -> dict[str, Any]:
    return {
        "summary": explanation.summary(),
        "examples": [_example(explanation, row, picture) for row in shown],
        "n_left_out": n_left_out,
        "is_complete": explanation.meta["multiply_by_inputs"],
        "facts": _facts(explanation),
        "cost": str(explanation.report) if explanation.report is not None else "",
    }


def _example(explanation: Explanation, row: int, picture: Callable[[Tensor], Any] | None) -> _Example:
    title = f"Example {row}: {described_target(explanation, row)}"
    return _Example(title, *pictures_of(explanation, row, _PANELS, picture))


def pictures_of(
    explanation: Explanation,
    row: int,
    panels: Mapping[str, str],
    picture: Callable[[Tensor], Any] | None,
    dpi: int = 110,
) -> tuple[tuple[tuple[str, str], ...], str]:
    """Returns the pictures of an example, as data addresses with what they show, and HTML: a text's words in colour.

    Of an image, there is a picture for each of the panels. Where there is none, the HTML says why.
    """
    try:
        kind = kind_of(explanation)
        if kind == "text":
            return (), text_html(tokens_of(explanation, row=row, title=""))
        if kind == "image":
            shown = picture(explanation.inputs[row]) if picture is not None else None
            figures = [plot(explanation, row=row, title="", picture=shown, panels=[panel]) for panel in panels]
            said = list(panels.values())
        else:
            figures, said = [plot(explanation, row=row, title="")], [SIGNS]
    except (ArgumentError, InputError) as error:
        return (), f"<p>No picture: {escape(str(error))}.</p>"
    target = described_target(explanation, row)
    addresses = [_address(figure, dpi) for figure in figures]
    return tuple((address, f"{what} {target}") for address, what in zip(addresses, said, strict=True)), ""


def _address(figure: Figure, dpi: int) -> str:
    """Returns a figure as the address of a PNG that holds the picture itself."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _facts(explanation: Explanation) -> list[tuple[str, str]]:
    meta = explanation.meta
    versions = ", ".join(f"{name} {number}" for name, number in meta["versions"].items())
    return [
        ("Method", f"{meta['method']}, {explanation.steps}"),
        ("Model", meta["model"]),
        *([("Layer", meta["layer"])] if meta["layer"] else []),
        ("Times (input - baseline)", "yes" if meta["multiply_by_inputs"] else "no: average gradients"),
        ("Versions", versions),
    ]
