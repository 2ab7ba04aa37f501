"""One page of HTML with a small picture of each of many examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from igfast.errors import ArgumentError
from igfast.explanation import Explanation
from igfast.viz.figures import check_explanation, described_target, rows_of
from igfast.viz.page import SIGNS, pictures_of, rendered

_DPI = 70  # of the small pictures


@dataclass(frozen=True)
class _Card:
    """One example of the page.

    Attributes:
        title: its name.
        target: what was attributed, and the prediction.
        pictures: as data addresses with what they show.
        text: of a text, the words in colour; HTML.
        link: where a click leads; empty for none.
    """

    title: str
    target: str
    pictures: tuple[tuple[str, str], ...]
    text: str
    link: str


def gallery(
    explanations: Explanation | Iterable[Explanation],
    *,
    titles: Sequence[str] | None = None,
    links: Sequence[str] | None = None,
    title: str = "Explanations",
    picture: Callable[[Tensor], Any] | None = None,
) -> str:
    """Returns a page of HTML with a small picture of every example, which works offline.

    Args:
        explanations: one of many examples, or several; all their examples are shown, in their order. Of an iterator,
            one is held at a time.
        titles: a name for each example; None numbers them.
        links: for each example what a click leads to, a page or a picture; empty texts for nothing.
        title: of the page.
        picture: as in `igfast.viz.report`.

    Returns:
        The page, to be written as UTF-8.

    Raises:
        ArgumentTypeError: not explanations.
        ArgumentError: another number of titles or links than examples.
        MissingPackageError: jinja2, matplotlib or scipy is not installed.

    Example:
        >>> explanation = igfast.IntegratedGradients(torch.nn.Linear(3, 2)).explain(torch.ones(4, 3), target=0)
        >>> igfast.viz.gallery(explanation, titles=["first", "second", "third", "fourth"]).count("<img")
        4
    """
    cards = list(_cards([explanations] if isinstance(explanations, Explanation) else explanations, picture))
    for name, given in (("titles", titles), ("links", links)):
        if given is not None and len(given) != len(cards):
            raise ArgumentError(f"{name} must have one entry for each of the {len(cards)} examples; got {len(given)}")
    shown = [
        _Card(titles[i] if titles else f"Example {i}", *card, links[i] if links else "") for i, card in enumerate(cards)
    ]
    return rendered("gallery.html", title=title, cards=shown)


def _cards(
    explanations: Iterable[Explanation], picture: Callable[[Tensor], Any] | None
) -> Iterator[tuple[str, tuple[tuple[str, str], ...], str]]:
    for explanation in explanations:
        check_explanation(explanation)
        for row in range(rows_of(explanation)):
            target = described_target(explanation, row)
            yield target, *pictures_of(explanation, row, {"overlay": SIGNS}, picture, _DPI)
