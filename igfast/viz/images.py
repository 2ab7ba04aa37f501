"""Pictures of attributions to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from igfast.errors import ArgumentError, InputError
from igfast.explanation import Explanation
from igfast.model.forward import copied
from igfast.model.modules import device_of
from igfast.model.state import buffers_restored
from igfast.packages import needed
from igfast.request.inputs import as_tuple
from igfast.request.target import parse_target
from igfast.viz.figures import GREEN, RED, Array, as_array, described_target, height_of, new_figure, row_of, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_PIXELS = 1024  # on the longer side; larger images are averaged down before anything is drawn
_INCHES = 3.6  # height of a panel
_LEAST_INCHES = 2.4  # of the width, for what is written
_SMALLEST_PART = 2e-3  # of the image: outlined regions below that are left out
_STRONG = 0.5  # of the full colour: what is outlined


@dataclass(frozen=True)
class _Drawing:
    """An image and its attributions, ready to be drawn.

    Attributes:
        picture: (height, width, 3) in [0, 1].
        grey: its luminance, (height, width, 3).
        signed: attributions in [-1, 1], (height, width): 1 is at the upper percentile or beyond.
        note: how the attributions were smoothed and clipped.
    """

    picture: Array
    grey: Array
    signed: Array
    note: str


def image(
    explanation: Explanation | Tensor | Array,
    picture: Any = None,
    *,
    row: int = 0,
    panels: Sequence[str] = ("input", "overlay"),
    sign: str = "both",
    clip: tuple[float, float] = (60.0, 99.5),
    smoothing: float = 0.03,
    title: str | None = None,
) -> Figure:
    """Draws the attributions of an image: where it speaks for the attributed output (green), and where against (red).

    Attributions are summed over channels, smoothed, and clipped at two percentiles of their absolute values. A line
    below says how, because smoothing moves what is seen: without it, single pixels of opposite signs hide each other.

    Args:
        explanation: an `igfast.Explanation` of images, or attributions, (channels, height, width), (height, width) or
            (1, channels, height, width).
        picture: what to show below the attributions: (height, width), (height, width, 3) or (3, height, width) in
            [0, 1], or uint8. None takes the explanation's input, scaled to [0, 1].
        row: the example.
        panels: one or several of `igfast.viz.PANELS`, from left to right. "input" is the image. "overlay" has the
            attributions on the image in grey. "heat_map" has their absolute values. "reveal" shows the image only where
            attributions are strong. "outlines" draws lines around strong regions, after small ones are removed.
        sign: "both", "positive" or "negative" attributions.
        clip: two percentiles of the absolute values. Below the first there is no colour, from the second on all of it.
        smoothing: standard deviation of a Gaussian, as a share of the longer side; 0 for none.
        title: over the picture; None says what was attributed.

    Returns:
        A figure. `igfast.viz.save` writes it as PNG or SVG.

    Raises:
        ArgumentError, ArgumentTypeError: an argument is not one of its values.
        InputError: not one image, or another size than `picture`; NaN or infinite attributions.
        MissingPackageError: matplotlib or scipy is not installed.

    Source: the overlay in green and red and the percentiles follow A. Taly's and M. Sundararajan's "how to" (2018).

    Example:
        >>> attributions = torch.randn(3, 32, 32)
        >>> figure = igfast.viz.image(attributions, np.zeros((32, 32, 3)), panels=["overlay", "outlines"])
        >>> len(figure.axes)
        2
    """
    _check_options(panels, sign, clip, smoothing)
    attributions, shown = _taken(explanation, picture, row)
    drawing = _prepared(attributions, shown, sign, clip, smoothing)
    height, width = drawing.signed.shape
    if title is None and isinstance(explanation, Explanation):
        title = f"{explanation.meta['method']}, {described_target(explanation, row)}"
    signs = "; green for, red against" if set(panels) & _SIGNED else ""
    inches = max(len(panels) * _INCHES * min(width / height, 2.5), _LEAST_INCHES)
    title, note = wrapped(title or "", inches, 11), wrapped(drawing.note + signs, inches, 7)
    figure = new_figure(inches, _INCHES + 0.5 + height_of(title, 11) + height_of(note, 7))
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        axes.imshow(_PANELS[panel](drawing), interpolation="nearest")
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11, parse_math=False)
    if set(panels) - {"input"}:
        figure.supxlabel(note, fontsize=7, color="0.4")
    return figure


def path_strip(
    explanation: Explanation,
    forward_func: Callable[..., Any],
    *,
    row: int = 0,
    n_images: int = 7,
    additional_forward_args: Any = None,
) -> Figure:
    """Draws the images along the path from the baseline to the input, and F below each.

    A model that has decided after a fifth of the path is saturated on the rest, where gradients are small.

    Args:
        explanation: of an image.
        forward_func: the attributed model.
        row: the example.
        n_images: how many, evenly spaced, both ends among them.
        additional_forward_args: those of the call, for the one example.

    Returns:
        A figure.

    Raises:
        ArgumentError: `n_images` is below 2, or there is no such row.
        InputError: not one image.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3; on saturation, Miglani and others 2020,
        arXiv:2010.12697.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
        >>> explanation = igfast.IntegratedGradients(model).explain(torch.rand(1, 3, 4, 4), target=1)
        >>> len(igfast.viz.path_strip(explanation, model, n_images=5).axes)
        5
    """
    if n_images < 2:
        raise ArgumentError(f"n_images must be at least 2; got {n_images}")
    if explanation.meta.get("averaged_over") or explanation.meta.get("layer"):
        raise ArgumentError(
            "a strip shows the path of inputs from one baseline to the model's output; the explanation has several "
            "baselines, or is of a layer or neuron"
        )
    x = row_of(explanation.inputs, row, "inputs").unsqueeze(0)
    x = x if x.is_floating_point() else x.float()  # as path points are
    _, shown = _taken(explanation, None, row)
    given = explanation.baselines
    baseline = given[row % len(given)].unsqueeze(0) if isinstance(given, Tensor) else torch.full_like(x, float(given))
    baseline = baseline.to(x.dtype)
    alphas = torch.linspace(0, 1, n_images).tolist()
    device = device_of(forward_func) or x.device
    points = [(baseline + alpha * (x - baseline)).to(device) for alpha in alphas]
    low, high = float(min(x.min(), baseline.min())), float(max(x.max(), baseline.max()))
    target = parse_target(explanation.target)
    first = torch.tensor([row if target.places is not None else 0])
    figure = new_figure(1.5 * n_images, 1.4 * shown.shape[0] / shown.shape[1] + 0.5)
    for axes, alpha, point in zip(figure.subplots(1, n_images), alphas, points, strict=True):
        with torch.no_grad(), buffers_restored(forward_func):
            output = forward_func(point.clone(), *map(copied, as_tuple(additional_forward_args)))
        value = float(target.select(target.with_entry(output), first))
        axes.imshow(_as_picture(as_array(point[0], "inputs"), (low, high)))
        axes.set_axis_off()
        axes.set_title(f"alpha {alpha:.2g}\nF {value:.3g}", fontsize=8)
    return figure


def _check_options(panels: Sequence[str], sign: str, clip: tuple[float, float], smoothing: float) -> None:
    if isinstance(panels, str) or not panels or any(panel not in PANELS for panel in panels):
        raise ArgumentError(f"panels must be a list of some of {list(PANELS)}; got {panels!r}")
    if sign not in _SIGNS:
        raise ArgumentError(f"sign must be one of {list(_SIGNS)}; got {sign!r}")
    if len(clip) != 2 or not 0 <= clip[0] < clip[1] <= 100:
        raise ArgumentError(f"clip must be two percentiles in [0, 100], the lower one first; got {clip!r}")
    if not 0 <= smoothing < 1:
        raise ArgumentError(f"smoothing must be a share of the longer side, at least 0 and below 1; got {smoothing!r}")


def _taken(explanation: Any, picture: Any, row: int) -> tuple[Array, Array]:
    """Returns attributions, (height, width), and the picture, (height, width, 3) in [0, 1]."""
    given = explanation
    if isinstance(explanation, Explanation):
        given = row_of(explanation.attributions, row, "attributions")
        picture = row_of(explanation.inputs, row, "inputs") if picture is None else picture
    attributions = as_array(given, "attributions")
    if attributions.ndim == 4 and len(attributions) == 1:
        attributions = attributions[0]
    if attributions.ndim not in (2, 3):
        raise InputError(f"an image has attributions (channels, height, width); got shape {attributions.shape}")
    last_is_channels = attributions.ndim == 3 and attributions.shape[2] in (1, 3)
    attributions = attributions.sum(axis=0) if attributions.ndim == 3 else attributions
    if picture is None:
        raise ArgumentError("picture is needed beside attributions without an explanation")
    shown = _as_picture(as_array(picture, "picture"), None)
    if shown.shape[:2] != attributions.shape:
        first = "; channels come first in attributions, (channels, height, width)" if last_is_channels else ""
        raise InputError(f"picture is {shown.shape[:2]} pixels, and the attributions are {attributions.shape}{first}")
    return attributions, shown


def _as_picture(pixels: Array, bounds: tuple[float, float] | None) -> Array:
    """Returns pixels as (height, width, 3) in [0, 1], scaled from the bounds, or as far as they are outside of it."""
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] not in (1, 3):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise InputError(
            f"picture must be (height, width), (height, width, 3) or (3, height, width); got {pixels.shape}"
        )
    pixels = pixels[:, :, :3] if pixels.shape[2] > 1 else np.repeat(pixels, 3, axis=2)
    low, high = bounds or (float(pixels.min()), float(pixels.max()))
    if bounds is None and low >= 0 and high <= 1:
        return pixels
    if bounds is None and low >= 0 and high <= 255 and high > 1 and np.array_equal(pixels, np.rint(pixels)):
        return pixels / 255
    return np.clip((pixels - low) / ((high - low) or 1.0), 0, 1)


def _prepared(attributions: Array, shown: Array, sign: str, clip: tuple[float, float], smoothing: float) -> _Drawing:
    ndimage = _ndimage()
    factor = -(-max(attributions.shape) // _MOST_PIXELS)
    attributions, shown = _averaged(attributions, factor), _averaged(shown, factor)
    sigma = smoothing * max(attributions.shape)
    smooth = ndimage.gaussian_filter(attributions, sigma) if sigma else attributions
    strengths = np.abs(smooth)
    low, high = np.percentile(strengths, clip)
    span = f"percentile {clip[0]:g} to {clip[1]:g}"
    if high <= low:  # nearly all are alike
        low, high, span = 0.0, strengths.max(), "zero to the largest"
    scaled = np.clip((strengths - low) / ((high - low) or 1.0), 0, 1) * np.sign(smooth)
    signed = np.clip(scaled, *_SIGNS[sign])
    luminance = shown @ np.array([0.299, 0.587, 0.114])
    how = f"smoothed, sigma {sigma * factor:.1f} px" if sigma else "not smoothed"
    note = f"{how}; colours from {span} of the absolute values"
    return _Drawing(shown, np.repeat(luminance[:, :, None], 3, axis=2), signed, note)


def _averaged(pixels: Array, factor: int) -> Array:
    """Returns pixels averaged over squares of `factor` by `factor`; a rest at the border is left out."""
    if factor == 1:
        return pixels
    high, wide = (min(factor, size) for size in pixels.shape[:2])
    height, width = pixels.shape[0] // high, pixels.shape[1] // wide
    squares = pixels[: height * high, : width * wide].reshape(height, high, width, wide, *pixels.shape[2:])
    averages: Array = squares.mean(axis=(1, 3))
    return averages


def _overlay(drawing: _Drawing) -> Array:
    """The attributions in colour on the image in grey, which is lightened so that both colours stand out."""
    base = 0.25 + 0.65 * drawing.grey
    alpha = np.abs(drawing.signed)[:, :, None] ** 0.8 * 0.9
    colour = np.where(drawing.signed[:, :, None] > 0, GREEN, RED)
    mixed: Array = base * (1 - alpha) + (0.35 * drawing.grey + 0.65) * colour * alpha
    return mixed


def _heat_map(drawing: _Drawing) -> Array:
    from matplotlib import colormaps

    colours: Array = colormaps["inferno"](np.abs(drawing.signed))[:, :, :3]
    return colours


def _reveal(drawing: _Drawing) -> Array:
    return drawing.picture * np.abs(drawing.signed)[:, :, None] ** 0.5


def _outlines(drawing: _Drawing) -> Array:
    ndimage = _ndimage()
    picture = drawing.picture.copy()
    thick = max(1, round(max(drawing.signed.shape) / 200))
    for colour, strong in ((GREEN, drawing.signed > _STRONG), (RED, drawing.signed < -_STRONG)):
        closed = ndimage.binary_closing(strong, iterations=2 * thick, border_value=0)
        parts, n_parts = ndimage.label(closed)
        sizes = ndimage.sum_labels(closed, parts, range(1, n_parts + 1)) if n_parts else np.zeros(0)
        kept = np.isin(parts, 1 + np.flatnonzero(sizes >= _SMALLEST_PART * closed.size))
        filled = ndimage.binary_fill_holes(kept)
        picture[filled ^ ndimage.binary_erosion(filled, iterations=thick)] = colour
    return picture


def _ndimage() -> Any:
    return needed("scipy.ndimage", "to draw images")


_SIGNED = {"overlay", "outlines"}
_SIGNS = {"both": (-1, 1), "positive": (0, 1), "negative": (-1, 0)}
_PANELS: dict[str, Callable[[_Drawing], Array]] = {
    "input": lambda drawing: drawing.picture,
    "overlay": _overlay,
    "heat_map": _heat_map,
    "reveal": _reveal,
    "outlines": _outlines,
}
PANELS = tuple(_PANELS)
"""What `image` can show: "input", "overlay", "heat_map", "reveal" and "outlines"."""
