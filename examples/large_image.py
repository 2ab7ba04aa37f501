"""Four sevens among 1024 digits, in an image of 4096 by 4096 pixels, within 4 GiB of memory.

A small network learns to count the digits on a page: handwritten ones in any colour, on squares of 128 pixels. It then
sees a page of 16 megapixels at full size. The attributions of a square sum to what the square adds to the count of
sevens, so the four sevens have nearly all of the attribution, on 1/256 of the area. Each square changes its mind at a
place of its own along the path, so a tolerance decides on the number of path points. 50 of them would take 10 GB if
they were held at once.

    python -m examples.large_image --out folder
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import igfast
from igfast.memory.peak import peak_memory

TILE, N_TILES = 128, 32
SEVENS = ((5, 22), (11, 6), (20, 27), (26, 13))  # rows and columns
BLANK = 10  # the class of an empty square
GIB = 2**30


class Counter(nn.Module):
    """How many squares of an image hold each digit: (batch, 3, side, side) to (batch, 11); the last one is of none."""

    def __init__(self) -> None:
        super().__init__()
        self.squares = nn.Sequential(
            *(nn.Conv2d(3, 16, 7, stride=4, padding=3), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()),
            nn.Conv2d(32, BLANK + 1, 8, stride=8),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Returns the expected counts."""
        counts: Tensor = self.squares(image).softmax(dim=1).sum(dim=(2, 3))
        return counts


def load_digits() -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's digits, (1797, 1, TILE, TILE) in [0, 1], and their classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    return nn.functional.interpolate(images, size=(TILE, TILE), mode="bilinear"), torch.tensor(digits.target)


def coloured(digits: Tensor, darkest: float) -> Tensor:
    """Returns digits, (batch, 1, TILE, TILE), in random colours, (batch, 3, TILE, TILE)."""
    brightness = darkest + (1 - darkest) * torch.rand(len(digits), 1, 1, 1)
    return digits * brightness * (0.4 + 0.6 * torch.rand(len(digits), 3, 1, 1))


def trained(digits: Tensor, classes: Tensor) -> Counter:
    """Returns a counter that has seen single squares, dark and empty ones too, as the path leads through them."""
    counter = Counter()
    optimizer = torch.optim.Adam(counter.parameters(), lr=2e-3)
    digits = torch.cat([digits, torch.zeros(200, 1, TILE, TILE)])
    classes = torch.cat([classes, torch.full((200,), BLANK)])
    for _ in range(10):
        for rows in torch.randperm(len(digits)).split(64):
            optimizer.zero_grad()
            logits = counter.squares(coloured(digits[rows], 0.3)).flatten(1)
            nn.functional.cross_entropy(logits, classes[rows]).backward()
            optimizer.step()
    return counter.eval()


def page_of(digits: Tensor, classes: Tensor) -> Tensor:
    """Returns a page of other digits with four sevens, (1, 3, 4096, 4096)."""
    others, sevens = (digits[of] for of in (classes != 7, classes == 7))
    tiles = coloured(others[torch.randint(len(others), (N_TILES**2,))], 0.7)
    for seven, (row, column) in zip(coloured(sevens[:4], 0.7), SEVENS, strict=True):
        tiles[row * N_TILES + column] = seven
    grid = tiles.unflatten(0, (N_TILES, N_TILES))
    return grid.permute(2, 0, 3, 1, 4).reshape(1, 3, N_TILES * TILE, N_TILES * TILE)


def run(out: Path) -> dict[str, float]:
    """Explains the page, draws it, and returns the share of the four sevens and the memory that it took."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    digits, classes = load_digits()
    held_out = torch.arange(len(digits)) % 5 == 0
    counter = trained(digits[~held_out], classes[~held_out])
    page = page_of(digits[held_out], classes[held_out])
    with peak_memory() as memory:
        explanation = igfast.IntegratedGradients(counter, memory_budget="4GiB").explain(page, target=7, tolerance=0.05)
    print(explanation.summary())
    attribution = explanation.attributions[0]
    options = {"smoothing": 0.01, "clip": (98.0, 99.5), "title": "what counts as a seven"}
    figure = igfast.viz.image(attribution, page[0], panels=("input", "reveal"), sign="positive", **options)
    igfast.viz.save(figure, out / "large-image.png")
    squares = attribution.sum(dim=0).unflatten(0, (N_TILES, TILE)).unflatten(2, (N_TILES, TILE)).sum(dim=(1, 3))
    return {
        "expected sevens": float(explanation.predictions),
        "area of the four sevens": len(SEVENS) / N_TILES**2,
        "attribution on the four sevens": float(sum(squares[place] for place in SEVENS) / squares.sum()),
        "estimated error": explanation.report.convergence.estimate[0],
        "path points": explanation.report.convergence.evaluations[0],
        "peak memory, GiB": memory.over_before / GIB,
    }


def main() -> None:
    """Runs the walk-through, and fails if its claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("igfast-examples"))
    figures = run(parser.parse_args().out)
    print("\n".join(f"{name}: {value:.3g}" for name, value in figures.items()))
    assert figures["attribution on the four sevens"] > 100 * figures["area of the four sevens"]
    assert figures["estimated error"] < 0.05
    assert figures["peak memory, GiB"] < 4


if __name__ == "__main__":
    main()
