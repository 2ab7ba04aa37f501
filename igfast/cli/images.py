"""`igfast image`: explains image files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import igfast
from igfast.cli.folder import files_in
from igfast.cli.models import check_target, digest, digest_of_state, numbers_of, target_of
from igfast.errors import CommandError
from igfast.explanation import Explanation
from igfast.model.modules import device_of, floating_dtype
from igfast.packages import needed

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_NOISE_SEED = 0


@dataclass(frozen=True)
class ImageRequest:
    """How image files are read and explained.

    Attributes:
        model: the network, from (1, 3, size, size).
        name: of the model, for the record.
        weights: the digest of the model's parameters and buffers.
        target: as --target has it.
        baseline: as --baseline has it.
        n_steps: points along the path.
        size: pixels on each side of what the network sees.
        mean, std: the normalisation of pixels in [0, 1], by channel.
        panels: of the picture.
        classes: the names of the classes; None if they have none.
    """

    model: nn.Module
    name: str
    weights: str
    target: str
    baseline: str
    n_steps: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    panels: tuple[str, ...]
    classes: tuple[str, ...] | None = None

    def record(self, path: Path) -> Mapping[str, Any]:
        """Returns everything that the explanation of a file depends on."""
        fields = {name: value for name, value in vars(self).items() if name not in ("model", "classes")}
        if self.classes is not None:
            fields["classes"] = sha256("\n".join(self.classes).encode()).hexdigest()
        return {**fields, "source": str(path), "image": digest(path), "igfast": igfast.__version__}

    def explain(self, path: Path) -> Explanation:
        """Returns the explanation of an image file; raises what Pillow raises for a file that is no whole image."""
        x = self.read(path)
        with torch.no_grad():
            output = self.model(x.clone())
        explainer = igfast.IntegratedGradients(self.model)
        picked = target_of(self.target, output)
        return explainer.explain(x, self.start(x), picked, n_steps=self.n_steps, target_names=self.classes)

    def read(self, path: Path) -> Tensor:
        """Returns the middle square of an image as the network takes it, (1, 3, size, size)."""
        pillow, operations = (needed(f"PIL.{name}", "to read images") for name in ("Image", "ImageOps"))
        with pillow.open(path) as image:
            if image.mode[0] in "IF":  # 16 or 32 bits: RGB would cut them off
                raise OSError(f"its pixels are of mode {image.mode}; convert them to 8 bits per channel")
            turned = operations.exif_transpose(image).convert("RGB")
            square = operations.fit(turned, (self.size, self.size), pillow.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255).permute(2, 0, 1)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        device, dtype = device_of(self.model) or "cpu", floating_dtype(self.model) or torch.float32
        return ((pixels - mean) / std).unsqueeze(0).to(device, dtype)

    def start(self, x: Tensor) -> Tensor:
        """Returns the baseline that --baseline names."""
        return _BASELINES[self.baseline](x, self.mean, self.std)

    def draw(self, explanation: Explanation, path: Path) -> None:
        """Writes the picture of an explanation as PNG."""
        picture = pixels_in(self.mean, self.std)(explanation.inputs[0])
        figure = igfast.viz.image(explanation, picture, panels=self.panels)
        figure.savefig(path, format="png", dpi=150)


def pixels_in(mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], np.ndarray[Any, Any]]:
    """Returns a function that gives the pixels in [0, 1] of what the network sees, (..., 3, size, size)."""
    means, stds = (np.array(values).reshape(-1, 1, 1) for values in (mean, std))
    return lambda x: np.clip(x.double().cpu().numpy() * stds + means, 0, 1)


def image_request(
    model: nn.Module,
    name: str,
    *,
    target: str,
    baseline: str,
    n_steps: int,
    size: int,
    mean: str,
    std: str,
    panels: str,
    classes: Path | None = None,
) -> ImageRequest:
    """Returns a request with checked options; raises CommandError for those that are none of their values."""
    if baseline not in _BASELINES:
        raise CommandError(f"--baseline must be one of {', '.join(_BASELINES)}; got {baseline!r}")
    check_target(target)
    if n_steps < 1 or size < 1:
        raise CommandError(f"--steps and --size must be at least 1; got {n_steps} and {size}")
    shown = tuple(panels.split(","))
    if not set(shown) <= set(igfast.viz.PANELS):
        raise CommandError(f"--panels must be some of {', '.join(igfast.viz.PANELS)}; got {panels!r}")
    means, stds = (_channels(option, text) for option, text in (("--mean", mean), ("--std", std)))
    if min(stds) <= 0:
        raise CommandError(f"--std must be positive; got {std!r}")
    if max(means) > 1 or max(stds) > 1:
        raise CommandError(f"--mean and --std are of pixels in [0, 1], at most 1; got {mean!r} and {std!r}")
    weights = digest_of_state(model)
    names = _names_in(classes) if classes else None
    return ImageRequest(model, name, weights, target, baseline, n_steps, size, means, stds, shown, names)


def images_in(paths: Sequence[Path]) -> list[Path]:
    """Returns image files, and those in folders; raises CommandError if a folder has none."""
    found: list[Path] = []
    for path in paths:
        files = [f for f in files_in(path) if f.suffix.lower() in ENDINGS] if path.is_dir() else [path]
        if not files:
            raise CommandError(f"there is no image in {path}; {', '.join(ENDINGS)} are read")
        found += files
    return found


def _names_in(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--classes {path}: {error}") from error


def _channels(option: str, text: str) -> tuple[float, ...]:
    values = numbers_of(option, text)
    if len(values) not in (1, 3):
        raise CommandError(f"{option} must be one number or three; got {text!r}")
    return tuple(values * 3)[:3]


_BASELINES: dict[str, Callable[[Tensor, tuple[float, ...], tuple[float, ...]], Tensor]] = {
    "black": igfast.baselines.black,
    "white": igfast.baselines.white,
    "zero": lambda x, *_: igfast.baselines.zeros(x),
    "blurred": lambda x, *_: igfast.baselines.blurred(x, sigma=max(x.shape[2:]) / 10),
    "noise": lambda x, *_: igfast.baselines.uniform(x, seed=_NOISE_SEED),
}
