"""Pictures of attributions to tokens: HTML, the terminal and figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from igfast.errors import ArgumentError, InputError
from igfast.explanation import Explanation
from igfast.packages import needed
from igfast.viz.figures import GREEN, RED, as_array, described_target, largest, new_figure, row_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.text import Text

_SPECIAL = re.compile(
    r"^(\[[A-Z]+\d*\]|\[/[A-Z]+\]|</?s>|<</?SYS>>|<0x0A>|<(pad|unk|mask|bos|eos|cls|sep)>|<[a-z]+(_[a-z0-9]+)+>"
    "|<[|\uff5c][^<>|\uff5c]+[|\uff5c]>)$"
)  # of BERT, Llama 2, T5, Gemma, and those between bars: GPT, Llama 3, Cohere, Qwen, DeepSeek
_STARTS = ("Ġ", "▁", "Ċ")
_PIECE = re.compile(r"##\w")  # the mark of BERT's tokenizer; "###" is a text's own
# Letters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_CONTROL = re.compile(r"[\x00-\x20\x7f-\x9f]")
_CONTROL_BUT_SPACES = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_NOTHING = 1e-6  # of the largest score
_MOST_COLOUR = 0.72  # of the full colour, so that black text on it can be read
_NEUTRAL = (0.93, 0.93, 0.93)
_VISIBLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_HIDDEN = (byte for byte in range(256) if byte not in _VISIBLE)  # written as the letters from 256 on
_BYTES = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + i): byte for i, byte in enumerate(_HIDDEN)}


@dataclass(frozen=True)
class Tokens:
    """The words of one text and their attributions.

    Attributes:
        words: the tokens, or words joined from their pieces.
        scores: the attribution of each word, the sum over its pieces and over the embedding's dimensions.
        special: whether each word is a special token, such as "[CLS]", which pictures dim.
        title: what was attributed.
    """

    words: tuple[str, ...]
    scores: tuple[float, ...]
    special: tuple[bool, ...]
    title: str = ""

    @property
    def strengths(self) -> tuple[float, ...]:
        """The scores over the largest absolute score, in [-1, 1]."""
        most = largest(np.array(self.scores))
        return tuple(score / most for score in self.scores)


def tokens_of(
    explanation: Explanation | Any,
    tokens: Sequence[str] | None = None,
    *,
    row: int = 0,
    title: str | None = None,
    join_pieces: bool = True,
) -> Tokens:
    """Returns the words of a text with their attributions.

    Args:
        explanation: an `igfast.Explanation` of token embeddings, or attributions, (tokens,) or (tokens, dimensions).
        tokens: the tokens as the tokenizer writes them; None takes the explanation's feature names. There may be fewer
            than places where padding follows the text, if that has no attributions.
        row: the example.
        title: what was attributed; None says it for an explanation.
        join_pieces: join pieces of words as BERT ("##ing"), GPT ("Ġthe") and SentencePiece ("▁the") write them.

    Raises:
        ArgumentError: no tokens, more tokens than attributions, or fewer and the rest is not zero.
        InputError: not attributions of one text.

    Example:
        >>> igfast.viz.tokens_of([0.5, 0.1, -0.2], ["play", "##ing", "[SEP]"])
        Tokens(words=('playing', '[SEP]'), scores=(0.6, -0.2), special=(False, True), title='')
    """
    given: Any = explanation
    if isinstance(explanation, Explanation):
        given = row_of(explanation.attributions, row, "attributions")
        names = explanation.feature_names
        if tokens is None and names is not None:
            tokens = names[row] if isinstance(names[0], tuple) else names
        title = described_target(explanation, row) if title is None else title
    scores = as_array(given, "attributions")
    if scores.ndim == 2:
        scores = scores.sum(axis=1)
    if scores.ndim != 1:
        raise InputError(f"a text has attributions (tokens,) or (tokens, dimensions); got shape {scores.shape}")
    if tokens is None:
        raise ArgumentError("tokens are needed: pass them, or feature_names to explain")
    if len(tokens) > len(scores):
        raise ArgumentError(f"there are {len(tokens)} tokens for {len(scores)} attributions")
    if np.abs(scores[len(tokens) :]).max(initial=0) > _NOTHING * largest(scores):
        raise ArgumentError(
            f"there are {len(tokens)} tokens for {len(scores)} attributions, and those beyond the last token are not "
            "zero. Pass a token for each place, also for padding: before the text, it would shift the tokens"
        )
    special = [bool(_SPECIAL.match(token)) for token in tokens]
    pieces = list(zip(tokens, scores[: len(tokens)].tolist(), special, strict=True))
    words = _joined(pieces) if join_pieces else pieces
    columns = tuple(zip(*words, strict=True)) or ((), (), ())
    return Tokens(columns[0], columns[1], columns[2], title or "")


def text_html(rows: Tokens | Sequence[Tokens]) -> str:
    """Returns texts in colour as HTML, one under the other: green speaks for the output, red against it.

    The HTML is for a place inside a page; `text_page` makes one. Tokens are escaped. Each word shows its score under
    the pointer. Each text has colours up to its own strongest word: scores compare between texts, and colours do not.

    Args:
        rows: one text, or several: other sentences, targets or models.

    Example:
        >>> "&lt;script&gt;" in igfast.viz.text_html(igfast.viz.tokens_of([1.0], ["<script>"]))
        True
    """
    return "\n".join(_row_html(row) for row in ([rows] if isinstance(rows, Tokens) else rows))


def text_page(rows: Tokens | Sequence[Tokens], *, title: str = "igfast") -> str:
    """Returns a page of HTML with texts in colour, to be written as UTF-8.

    Args:
        rows: as in `text_html`.
        title: of the page.

    Example:
        >>> igfast.viz.text_page(igfast.viz.tokens_of([1.0], ["good"])).startswith("<!doctype html>")
        True
    """
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
    return f"{head}{text_html(rows)}\n</html>\n"


def text_terminal(rows: Tokens | Sequence[Tokens]) -> Text:
    """Returns texts in colour for the terminal, as `rich.print` takes them.

    Args:
        rows: one text, or several.

    Raises:
        MissingPackageError: rich is not installed.

    Example:
        >>> igfast.viz.text_terminal(igfast.viz.tokens_of([1.0, -0.5], ["good", "bad"])).plain
        ' good  bad '
    """
    new_text = needed("rich.text", "to print texts in colour").Text
    lines = []
    for row in [rows] if isinstance(rows, Tokens) else rows:
        line = new_text(f"{row.title}\n" if row.title else "")
        for word, strength, special in zip(row.words, row.strengths, row.special, strict=True):
            line.append(f" {word} ", style=f"{'dim ' if special else ''}black on {_colour(strength)}")
        lines.append(line)
    joined: Text = new_text("\n").join(lines)
    return joined


def _joined(pieces: Sequence[tuple[str, float, bool]]) -> list[tuple[str, float, bool]]:
    """Returns words of pieces; a score of a word is the sum of the scores of its pieces."""
    words: list[tuple[str, float, bool]] = []
    tokens = [token for token, _, _ in pieces]
    marks_pieces, bytewise = _marks_pieces(tokens), _is_bytewise(tokens)
    marks_starts = any(token[:1] in _STARTS for token in tokens)
    for token, score, special in pieces:
        is_piece = bool(_PIECE.match(token)) if marks_pieces else marks_starts and token[:1] not in _STARTS
        text = _without_mark(token, marks_pieces)
        if is_piece and words and not special and not words[-1][2] and not _are_words(words[-1][0], text, bytewise):
            before, total, _ = words.pop()
            words.append((before + text, total + score, False))
        else:
            words.append((text, score, special))
    return [(_letters(word, bytewise), score, special) for word, score, special in words]


def _are_words(before: str, text: str, bytewise: bool) -> bool:
    """Returns whether two neighbours are words of a script that has no spaces between words."""
    letters = _letters(before, bytewise)[-1:], _letters(text, bytewise)[:1]
    return all(map(_UNSPACED.match, letters))


def readable(tokens: Sequence[str]) -> list[str]:
    """Returns tokens without the marks of words' starts, and with the letters that their bytes stand for."""
    marks_pieces, bytewise = _marks_pieces(tokens), _is_bytewise(tokens)
    return [_letters(_without_mark(token, marks_pieces), bytewise) for token in tokens]


def one_line(text: str) -> str:
    """Returns a text with signs in the place of line breaks."""
    return text.replace("\n", "⏎")


def _without_mark(token: str, marks_pieces: bool) -> str:
    if marks_pieces:
        return token[2:] if _PIECE.match(token) else token
    return token.lstrip("Ġ▁") or token


def _marks_pieces(tokens: Sequence[str]) -> bool:
    """Returns whether the tokenizer marks pieces that go on a word, and not words' starts."""
    return any(map(_PIECE.match, tokens))


def _is_bytewise(tokens: Sequence[str]) -> bool:
    """Returns whether the tokenizer writes each byte as a letter, as far as spaces and line breaks tell."""
    return any(token[:1] in ("Ġ", "Ċ") for token in tokens) and not _marks_pieces(tokens)


def _letters(word: str, bytewise: bool) -> str:
    """Returns a word with the letters that it stands for, where the tokenizer writes each byte as a letter, as GPT-2's.

    Letters such as ą stand for control characters there. A word that would have these is of another tokenizer.

    Source: Radford and others 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
    """
    try:
        text = bytes(_BYTES[letter] for letter in word).decode()
    except (KeyError, UnicodeDecodeError):  # of another tokenizer, or a part of a letter
        text = word
    return one_line(word if (_CONTROL_BUT_SPACES if bytewise else _CONTROL).search(text) else text)


def _colour(strength: float) -> str:
    """Returns the colour for a strength in [-1, 1], from red over grey to green, as "#rrggbb"."""
    share = abs(strength) ** 0.8 * _MOST_COLOUR
    mixed = [n * (1 - share) + c * share for n, c in zip(_NEUTRAL, GREEN if strength > 0 else RED, strict=True)]
    return "#" + "".join(f"{round(255 * c):02x}" for c in mixed)


def _row_html(row: Tokens) -> str:
    title = f'<p class="igfast-title">{escape(row.title)}</p>' if row.title else ""
    spans = []
    for word, score, strength, special in zip(row.words, row.scores, row.strengths, row.special, strict=True):
        dimmed = ";font-size:.8em;font-style:italic" if special else ""
        spans.append(
            f'<span title="{score:+.3g}" style="background:{_colour(strength)};color:#111;border-radius:.2em;'
            f'padding:.1em .3em{dimmed}">{escape(word)}</span>'
        )
    return f'<div class="igfast-text" style="line-height:2">{title}{" ".join(spans)}</div>'


def text_figure(rows: Tokens | Sequence[Tokens], *, width: float = 8.0) -> Figure:
    """Returns texts in colour as a figure.

    Args:
        rows: one text, or several.
        width: of the figure, in inches.

    Raises:
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> figure = igfast.viz.text_figure(igfast.viz.tokens_of([1.0, -0.5], ["good", "bad"]))
        >>> [text.get_text() for text in figure.texts]
        ['good', 'bad']
    """
    texts = [rows] if isinstance(rows, Tokens) else list(rows)
    figure = new_figure(width, 10.0)
    figure.set_layout_engine("none")
    margin, gap, line = 0.15, 0.14, 0.34  # inches
    top = margin
    for row in texts:
        if row.title:
            _word(figure, row.title, margin, top, fontsize=9, color="0.3")
            top += line * 0.8
        left = margin
        for word, strength, special in zip(row.words, row.strengths, row.special, strict=True):
            box = {"facecolor": _colour(strength), "edgecolor": "none", "boxstyle": "round,pad=0.25"}
            drawn = _word(figure, word, left, top, fontsize=12, bbox=box, color="#111111", alpha=0.55 if special else 1)
            wide = drawn.get_window_extent().width / figure.dpi
            if left + wide > width - margin and left > margin:
                left, top = margin, top + line
                _place(figure, drawn, left, top)
            left += wide + gap
        top += line * 1.4
    _set_height(figure, top)
    return figure


def _word(figure: Figure, text: str, left: float, top: float, **style: Any) -> Any:
    drawn = figure.text(0, 0, text, va="top", parse_math=False, **style)
    _place(figure, drawn, left, top)
    return drawn


def _place(figure: Figure, text: Any, left: float, top: float) -> None:
    """Puts a text at a place in inches from the upper left corner."""
    wide, high = figure.get_size_inches()
    text.set_position((left / wide, 1 - top / high))


def _set_height(figure: Figure, height: float) -> None:
    """Changes the figure's height; texts keep their distance from the upper edge."""
    wide, before = figure.get_size_inches()
    figure.set_size_inches(wide, height)
    for text in figure.texts:
        x, y = text.get_position()
        text.set_position((x, 1 - (1 - y) * before / height))
