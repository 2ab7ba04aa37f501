"""A script for Alibi's Integrated Gradients, moved to PyTorch: its lines stay, and so do its results.

The script explains a classifier of small images of handwritten digits, as Alibi's own examples do. NumPy goes in and
comes out, the target comes from a function of the predictions, and completeness is checked with `deltas`. The claim:
attributions equal a sum over the path that is written down here with NumPy's own quadrature.

    python -m examples.alibi_script --out folder
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import igfast
from igfast.alibi import IntegratedGradients

N_STEPS = 50


def load_digits() -> tuple[Any, Any]:
    """Returns scikit-learn's digits, (1797, 1, 8, 8) in [0, 1], and their classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images[:, None].astype(np.float32) / 16, digits.target


def trained_model(x: Any, y: Any) -> tuple[nn.Module, float]:
    """Returns a small network, and its accuracy on the fifth of the digits that it did not see."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)
    )
    inputs, classes = torch.from_numpy(x), torch.from_numpy(y)
    held_out = torch.arange(len(inputs)) % 5 == 0
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(15):
        for rows in torch.randperm(int((~held_out).sum())).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[~held_out][rows]), classes[~held_out][rows]).backward()
            optimizer.step()
    model = nn.Sequential(model, nn.Softmax(dim=1)).eval()
    with torch.no_grad():
        right = model(inputs[held_out]).argmax(dim=1) == classes[held_out]
    return model, float(right.float().mean())


def by_hand(model: nn.Module, x: Any, target: Any) -> Any:
    """Returns the attributions of the definition: a sum of gradients, with Gauss and Legendre's nodes and weights."""
    nodes, weights = np.polynomial.legendre.leggauss(N_STEPS)
    exact, total = model.double(), np.zeros(x.shape)
    for alpha, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        point = torch.from_numpy(alpha * x.astype(np.float64)).requires_grad_()
        picked = exact(point)[torch.arange(len(x)), torch.from_numpy(target)].sum()
        total += weight * torch.autograd.grad(picked, point)[0].numpy()
    model.float()
    return total * x


def run(out: Path) -> dict[str, float]:
    """Explains eight digits as Alibi's users do, draws them, and returns how the results compare."""
    out.mkdir(parents=True, exist_ok=True)
    x, y = load_digits()
    model, accuracy = trained_model(x, y)
    X = x[:40:5]  # noqa: N806  (Alibi's name)

    explainer = IntegratedGradients(model, n_steps=N_STEPS, target_fn=partial(np.argmax, axis=1))
    explanation = explainer.explain(X, baselines=None)
    attributions = explanation.attributions[0]

    (out / "alibi.json").write_text(explanation.to_json(), encoding="utf-8")
    igfast.viz.save(igfast.viz.image(attributions[4], X[4], title="what speaks for a zero"), out / "digit.png")
    expected = by_hand(model, X, explanation.target)
    return {
        "accuracy on digits held out": accuracy,
        "largest difference from the sum": float(np.abs(attributions - expected).max() / np.abs(expected).max()),
        "largest delta": float(np.abs(explanation.deltas).max()),
    }


def main() -> None:
    """Runs the walk-through, and fails if its claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("igfast-examples"))
    figures = run(parser.parse_args().out)
    print("\n".join(f"{name}: {value:.3g}" for name, value in figures.items()))
    assert figures["accuracy on digits held out"] > 0.95
    assert figures["largest difference from the sum"] < 1e-4
    assert figures["largest delta"] < 0.02


if __name__ == "__main__":
    main()
