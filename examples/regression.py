"""Attributions of a regression whose coefficients are known.

The data have 32 features with positive coefficients, 32 with negative ones, and 32 that are noise. A network learns
the sum from examples. The attribution of a feature should then be its coefficient times its value, and noise should
get next to nothing.

    python -m examples.regression --out folder
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import igfast

N_EACH, N_TRAINED, N_EXPLAINED = 32, 20_000, 200


def make_data(n_rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns features, (rows, 96) from the standard normal distribution, and their weighted sums, (rows, 1)."""
    features = torch.randn(n_rows, 3 * N_EACH, generator=generator)
    return features, features @ coefficients().unsqueeze(1)


def coefficients() -> Tensor:
    """Returns the true coefficients, (96,): 32 positive, 32 negative, 32 zeros."""
    sizes = torch.linspace(0.5, 1.5, N_EACH)
    return torch.cat([sizes, -sizes, torch.zeros(N_EACH)])


def train(generator: torch.Generator) -> nn.Module:
    """Returns a network that was fitted to examples."""
    features, sums = make_data(N_TRAINED, generator)
    model = nn.Sequential(nn.Linear(3 * N_EACH, 128), nn.GELU(), nn.Linear(128, 1))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    n_epochs, batch = 30, 500
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=n_epochs * N_TRAINED // batch)
    for _ in range(n_epochs):
        for rows in torch.randperm(N_TRAINED, generator=generator).split(batch):
            optimiser.zero_grad()
            nn.functional.mse_loss(model(features[rows]), sums[rows]).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def run(out: Path) -> dict[str, float]:
    """Trains, explains, draws, and returns the figures of the claim."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = train(generator)
    features, _ = make_data(N_EXPLAINED, generator)
    names = [f"{kind} {i}" for kind in ("positive", "negative", "noise") for i in range(N_EACH)]
    explanation = igfast.IntegratedGradients(model).explain(features, target=0, feature_names=names)
    attributions, expected = explanation.attributions, features * coefficients()
    signal = slice(0, 2 * N_EACH)
    figures = {
        "correlation": float(np.corrcoef(attributions[:, signal].flatten(), expected[:, signal].flatten())[0, 1]),
        "share of noise": float(attributions[:, 2 * N_EACH :].abs().sum() / attributions.abs().sum()),
        "largest delta": float(explanation.deltas.abs().max()),
    }
    igfast.viz.save(explanation.plot(most=12), out / "row.png")
    _draw(attributions, expected, out / "regression.png")
    return figures


def _draw(attributions: Tensor, expected: Tensor, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.subplots()
    for kind, colour in (("positive", "tab:green"), ("negative", "tab:red"), ("noise", "tab:gray")):
        start = ("positive", "negative", "noise").index(kind) * N_EACH
        columns = slice(start, start + N_EACH)
        x, y = expected[:, columns].flatten(), attributions[:, columns].flatten()
        axes.scatter(x, y, s=3, color=colour, label=f"{kind} coefficients" if kind != "noise" else kind)
    axes.set_xlabel("coefficient times value")
    axes.set_ylabel("attribution")
    axes.legend(markerscale=4)
    igfast.viz.save(figure, path)


def main() -> None:
    """Runs the walk-through, and fails if its claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("igfast-examples"))
    figures = run(parser.parse_args().out)
    print("\n".join(f"{name}: {value:.4g}" for name, value in figures.items()))
    assert figures["correlation"] > 0.99
    assert figures["share of noise"] < 0.02


if __name__ == "__main__":
    main()
