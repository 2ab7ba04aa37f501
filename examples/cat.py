"""Where a network looks when it sees a cat, with three baselines.

The share of the attribution inside a box around the cat's face, against the share of the box in the image's area. With
a black baseline the two are nearly equal: dark parts get nothing, and bright parts of the background a lot. Averages
over noise and a blurred image show the cheeks with their whiskers, the muzzle and the ear.

    python -m examples.cat --out folder
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import igfast
from igfast.cli.photograph import load_network

HEIGHT, WIDTH = 224, 336
FACE = (slice(70, 200), slice(85, 255))  # rows and columns: eyes, nose and mouth


def load_photo() -> Tensor:
    """Returns scikit-image's cat as EfficientNet-Lite takes it, (1, 3, HEIGHT, WIDTH): pixels (value - 127) / 128."""
    from skimage.data import chelsea

    pixels = (torch.tensor(chelsea()).float() - 127) / 128
    image = pixels.permute(2, 0, 1).unsqueeze(0)
    return nn.functional.interpolate(image, size=(HEIGHT, WIDTH), mode="bilinear", antialias=True)


def run(out: Path) -> dict[str, float]:
    """Explains the cat with three baselines, draws, and returns the share of the face for each."""
    out.mkdir(parents=True, exist_ok=True)
    model, photo = load_network(), load_photo()
    target = int(model(photo).argmax())
    explainer = igfast.IntegratedGradients(model)
    black = igfast.baselines.constant(photo, -127 / 128)
    noises = [igfast.baselines.uniform(photo, seed=seed) for seed in range(4)]
    attributions = {
        "black": explainer.attribute(photo, black, target),
        "noise": torch.stack([explainer.attribute(photo, noise, target, n_steps=20) for noise in noises]).mean(dim=0),
        "blurred": explainer.attribute(photo, igfast.baselines.blurred(photo, sigma=20), target),
    }
    picture = ((photo[0] * 128 + 127) / 255).clamp(0, 1)
    for name, attribution in attributions.items():
        panels, title = ("input", "overlay", "outlines"), f"Egyptian cat, {name} baseline"
        figure = igfast.viz.image(attribution[0], picture, panels=panels, title=title)
        igfast.viz.save(figure, out / f"cat-{name}.png")
    whole = HEIGHT * WIDTH
    area = (FACE[0].stop - FACE[0].start) * (FACE[1].stop - FACE[1].start) / whole
    shares = {name: float(a[0, :, FACE[0], FACE[1]].abs().sum() / a.abs().sum()) for name, a in attributions.items()}
    return {"area of the face": area, **{f"attribution in the face, {name}": share for name, share in shares.items()}}


def main() -> None:
    """Runs the walk-through, and fails if its claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("igfast-examples"))
    figures = run(parser.parse_args().out)
    print("\n".join(f"{name}: {value:.1%}" for name, value in figures.items()))
    area = figures["area of the face"]
    assert figures["attribution in the face, noise"] > 1.2 * area
    assert figures["attribution in the face, blurred"] > 1.2 * area
    assert figures["attribution in the face, black"] > area


if __name__ == "__main__":
    main()
