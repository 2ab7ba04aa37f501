"""`igfast report`: pages of results that were written before."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import torch

import igfast
from igfast.cli.folder import files_in
from igfast.cli.images import pixels_in
from igfast.errors import CommandError, ExplanationFileError
from igfast.explanation import Explanation
from igfast.viz.figures import rows_of

_KEYS: dict[str, Callable[[Explanation], float]] = {
    "name": lambda _: 0.0,
    "prediction": lambda explanation: -float(explanation.predictions[0]),
    "delta": lambda explanation: -abs(float(explanation.deltas[0])),
}
"""What --sort may be; what is equal stands in the order of names."""


def explanation_page(result: Path, title: str) -> str:
    """Returns the page of one result."""
    return igfast.viz.report(_as_shown(Explanation.load(result)), title=title)


def folder_page(folder: Path, page: Path, title: str, sort: str) -> tuple[str, int]:
    """Returns the page of all results in a folder, and how many files could not be read; those are named.

    Each picture leads to what lies beside its result: a page, or a picture.

    Raises:
        CommandError: `sort` is none of its values, or there is no result.
    """
    if sort not in _KEYS:
        raise CommandError(f"--sort must be one of {', '.join(_KEYS)}; got {sort!r}")
    files = [file for file in files_in(folder) if file.suffix == ".safetensors"]
    keys: dict[Path, tuple[float, int]] = {}
    for file in files:
        try:
            explanation = Explanation.load(file)
            keys[file] = _KEYS[sort](explanation), rows_of(explanation)
        except ExplanationFileError as error:
            print(error, file=sys.stderr)
    if not keys:
        raise CommandError(f"there is no result in {folder}")
    shown = sorted(keys, key=lambda file: keys[file][0])

    def loaded() -> Iterator[Explanation]:  # one at a time
        for file in shown:
            yield _as_shown(Explanation.load(file))

    titles, links = [], []
    for file in shown:
        name, n_examples = str(file.relative_to(folder).with_suffix("")), keys[file][1]
        titles += [name] if n_examples == 1 else [f"{name}, {number}" for number in range(n_examples)]
        links += [_beside(file, page)] * n_examples
    return igfast.viz.gallery(loaded(), titles=titles, links=links, title=title), len(files) - len(keys)


def _beside(result: Path, page: Path) -> str:
    """Returns the address, from a page, of the page or the picture of a result; empty if there is none."""
    for ending in (".html", ".png"):
        other = result.with_suffix(ending)
        if other.exists() and other.resolve() != page.resolve():
            return quote(os.path.relpath(other.resolve(), page.resolve().parent))
    return ""


def _as_shown(explanation: Explanation) -> Explanation:
    """Returns a result of `igfast image` with pixels for inputs, as its picture shows them; others as they are."""
    request = explanation.meta.get("request", {})
    if "mean" not in request or "std" not in request:
        return explanation
    pixels = pixels_in(request["mean"], request["std"])(explanation.inputs)
    return replace(explanation, inputs=torch.from_numpy(pixels))
