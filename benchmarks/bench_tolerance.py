"""Error against path points: igfast's tolerance beside fixed rules, on trained networks. Writes tolerance.jsonl.

The error of an example is the L2 norm of the difference from a reference, over the norm of the reference. The reference
is the rule of 945 midpoints, on images of 2835. The midpoints of an odd divisor are among those of the reference, so
one set of gradients gives the error of the rule at each divisor. The ideal number of midpoints for an error lies
between two divisors, on the line through their errors in logarithms: a number that nobody knows in advance. `--plot`
draws docs/pictures/tolerance.png.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import igfast
from benchmarks import harness
from igfast.cli.photograph import load_network

TOLERANCES = (0.05, 0.01)
N_REFERENCE = {"image": 2835, "net": 945, "text": 945, "mlp": 945}
SIDE = 160  # of photographs, half the pixels of 224, so that a run takes half an hour
PHOTOGRAPHS = ("chelsea", "coffee", "astronaut", "rocket", "motorcycle")


@dataclass(frozen=True)
class Case:
    """One example to explain.

    Attributes:
        kind: "image", "net", "text" or "mlp".
        name: what it is.
        smooth: whether the network is.
        explainer: made for its model.
        arguments: of `attribute`.
        difference: of the input, or the layer's value, and the baseline.
    """

    kind: str
    name: str
    smooth: bool
    explainer: Any
    arguments: dict[str, Any]
    difference: Tensor

    def attributions(self, tolerance: float) -> tuple[Tensor, Any]:
        """Returns the attributions to a tolerance, flat, in float64, and how near they are said to be."""
        found, report = self.explainer.attribute(**self.arguments, tolerance=tolerance, return_report=True)
        return found.double().flatten(), report.convergence

    def points(self) -> Tensor:
        """Returns what each midpoint of the reference gives alone, (midpoints, features): its gradient, scaled."""
        parts: list[Tensor] = []

        def keep(_: Tensor, grads: Tensor, *__: Any) -> None:
            parts.append(grads.detach().reshape(len(grads), -1).clone())

        with patched(igfast.ops, "accumulate_", keep):
            self.explainer.attribute(**self.arguments, n_steps=N_REFERENCE[self.kind], method="riemann_middle")
        grads = torch.cat(parts)
        return grads.mul_(self.difference.reshape(1, -1).to(grads))


def photograph(name: str) -> Tensor:
    """Returns the middle square of one of scikit-image's photographs, as EfficientNet-Lite takes it."""
    from skimage import data

    pixels = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    height, width, _ = pixels.shape
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = torch.tensor(pixels[top : top + short, left : left + short].copy()).float()
    scaled = ((square - 127) / 128).permute(2, 0, 1).unsqueeze(0)
    return nn.functional.interpolate(scaled, size=(SIDE, SIDE), mode="bilinear", antialias=True)


def image_cases() -> Iterator[Case]:
    """EfficientNet-Lite0: five photographs, four baselines, the probability and the logit of the first class."""
    network = load_network()
    for name in PHOTOGRAPHS:
        x = photograph(name)
        with torch.no_grad():
            target = int(network(x).argmax())
        baselines = {
            "black": torch.full_like(x, -127 / 128),
            "grey": torch.zeros_like(x),
            "white": torch.full_like(x, 1.0),
            "noise": igfast.baselines.uniform(x, seed=0),
        }
        for label, baseline in baselines.items():
            for output, model in (("probability", network), ("logit", network[0])):
                arguments = {"inputs": x, "baselines": baseline, "target": target}
                explainer = igfast.IntegratedGradients(model)
                yield Case("image", f"{name}, {label}, {output}", False, explainer, arguments, x - baseline)


class Residual(nn.Module):
    """Two convolutions with batch norms, and their input added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()),
            *(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum, cut at zero."""
        return (x + self.body(x)).relu()


def net_cases() -> Iterator[Case]:
    """A small residual network with batch norm, trained on scikit-learn's digits."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    images, classes = torch.tensor(digits.images).float().unsqueeze(1) / 16, torch.tensor(digits.target)
    network = nn.Sequential(
        *(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        *(Residual(24), nn.MaxPool2d(2), Residual(24), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(6):
        for rows in torch.randperm(1500).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), classes[rows]).backward()
            optimizer.step()
    network.eval()
    for index in range(1500, 1512):
        arguments = {"inputs": images[index : index + 1], "target": int(classes[index])}
        explainer = igfast.IntegratedGradients(network)
        yield Case("net", f"digit {index}", False, explainer, arguments, arguments["inputs"])


def text_cases() -> Iterator[Case]:
    """The sentences of the text demo through MiniLM with its sentiment head."""
    from igfast.cli.demo_text import PAIR, SENTENCE, fit_sentiment, load_encoder

    encoder, tokenizer = load_encoder()
    model, _ = fit_sentiment(encoder, tokenizer)
    embedding = encoder.transformer.get_input_embeddings()
    for sentence in (SENTENCE, *PAIR, "What a wonderful day", "This is the worst film that I have ever seen"):
        encoded = tokenizer([sentence], return_tensors="pt")
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        start = igfast.baselines.pad_tokens(ids, tokenizer)
        arguments = {"inputs": ids, "baselines": start, "additional_forward_args": mask}
        difference = (embedding(ids) - embedding(start)).detach()
        yield Case("text", sentence, True, igfast.LayerIntegratedGradients(model, embedding), arguments, difference)


def mlp_cases() -> Iterator[Case]:
    """ReLU and GELU MLPs that learned a function of 20 features."""
    for label, activation in (("ReLU", nn.ReLU), ("GELU", nn.GELU)):
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Linear(20, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 1)),
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(800):
            x = torch.randn(128, 20)
            wanted = x[:, :5].sum(dim=1).sin() + x[:, 5] * x[:, 6]
            optimizer.zero_grad()
            (network(x).squeeze(1) - wanted).square().mean().backward()
            optimizer.step()
        x = torch.randn(10, 20, generator=torch.Generator().manual_seed(1))
        exact = network.double().eval()
        for index in range(10):
            arguments = {"inputs": x[index : index + 1].double()}
            explainer = igfast.IntegratedGradients(exact)
            yield Case("mlp", f"{label} {index}", label == "GELU", explainer, arguments, arguments["inputs"])


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replaces an attribute during the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


NAMES = {
    "image": "EfficientNet-Lite0",
    "net": "residual network of digits",
    "text": "MiniLM",
    "mlp": "ReLU and GELU MLPs",
    "smooth": "MiniLM and GELU MLPs",
}
CASES = {"image": image_cases, "net": net_cases, "text": text_cases, "mlp": mlp_cases}


def measured(case: Case) -> list[dict[str, Any]]:
    """Returns the records of one example."""
    each = case.points()
    reference = each.mean(dim=0, dtype=torch.float64)

    def error(found: Tensor) -> float:
        return float((found - reference).norm() / reference.norm())

    common = {"benchmark": "tolerance", "kind": case.kind, "case": case.name, "smooth": case.smooth}
    n_all = len(each)
    divisors = (n for n in range(3, n_all // 3 + 1) if n_all % n == 0)
    errors = {n: error(each[n_all // n // 2 :: n_all // n].mean(dim=0, dtype=torch.float64)) for n in divisors}
    records = [{**common, "rule": "riemann_middle", "evaluations": n, "error": found} for n, found in errors.items()]
    for tolerance in TOLERANCES:
        found, convergence = case.attributions(tolerance)
        records.append(
            {
                **common,
                "rule": "tolerance",
                "tolerance": tolerance,
                "evaluations": convergence.evaluations[0],
                "error": error(found),
                "estimate": convergence.estimate[0],
                "bound": convergence.bound[0],
                "converged": convergence.converged[0],
                "ideal": ideal(errors, error(found)),
            }
        )
    return records


def ideal(errors: dict[int, float], wanted: float) -> float:
    """Returns the smallest number of midpoints with an error, between those whose errors are known."""
    before = None
    for n, found in sorted(errors.items()):
        if found <= wanted:
            if before is None or before[1] <= found:
                return float(n)
            share = math.log(before[1] / wanted) / math.log(before[1] / found)
            return float(before[0] * (n / before[0]) ** share)
        before = n, found
    return float(max(errors))


def summary(records: list[dict[str, Any]]) -> list[str]:
    """Returns a table of what the records say of the tolerance."""
    lines = [
        "| cases | tolerance | runs | within | worst error | path points | ideal midpoints | estimate near the error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in (*CASES, "smooth"):
        for tolerance in TOLERANCES:
            of_kind = [r for r in records if (r["smooth"] if kind == "smooth" else r["kind"] == kind)]
            runs = [r for r in of_kind if r.get("tolerance") == tolerance]
            if not runs:
                continue
            fewer = math.exp(np.mean([math.log(r["ideal"] / r["evaluations"]) for r in runs]))
            columns = (
                NAMES[kind],
                f"{tolerance:.0%}",
                f"{len(runs)}",
                f"{np.mean([r['error'] <= tolerance for r in runs]):.0%}",
                f"{max(r['error'] / tolerance for r in runs):.2f} x",
                f"{np.mean([r['evaluations'] for r in runs]):.0f}",
                f"{fewer:.2f} x",
                f"{np.mean([0.7 <= r['estimate'] / r['error'] <= 1.4 for r in runs]):.0%}",
            )
            lines.append(f"| {' | '.join(columns)} |")
    return lines


def plot(records: list[dict[str, Any]]) -> None:
    """Draws the median error of each rule against path points, for each kind of case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(CASES), sharey=True), CASES, strict=True):
        of_kind = [r for r in records if r["kind"] == kind]
        fixed = [r for r in of_kind if r["rule"] == "riemann_middle"]
        midpoints = sorted({r["evaluations"] for r in fixed})
        medians = [np.median([r["error"] for r in fixed if r["evaluations"] == n]) for n in midpoints]
        axes.loglog(midpoints, medians, "o-", markersize=3, label="midpoints")
        runs = [r for r in of_kind if r["rule"] == "tolerance"]
        axes.loglog([r["evaluations"] for r in runs], [r["error"] for r in runs], "k.", label="tolerance, each run")
        axes.set_title(kind)
        axes.set_xlabel("path points")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("relative L2 error")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(harness.RESULTS.parent.parent / "docs" / "pictures" / "tolerance.png", dpi=120)


def main() -> None:
    """Measures all cases, prints a summary, and writes the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="*", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--most", type=int, help="cases of each kind")
    parser.add_argument("--plot", action="store_true", help="only draw the records that there are")
    options = parser.parse_args()
    path = harness.RESULTS / "tolerance.jsonl"
    if not options.plot:
        records = []
        for kind in options.kinds:
            for index, case in enumerate(CASES[kind]()):
                if options.most is not None and index >= options.most:
                    break
                records += measured(case)
                print(json.dumps(records[-1]), flush=True)
        print("\n".join(summary(records)))
        if options.most is None:
            print(harness.update("tolerance", records))
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else records
    plot(records)


if __name__ == "__main__":
    main()
