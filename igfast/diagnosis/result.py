"""What `diagnose` found: findings with figures, which print and render."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from igfast.errors import ArgumentError
from igfast.packages import needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = {"good": "ok", "look": "??", "bad": "!!", "skipped": "--"}


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        check: its name: "output", "scale", "mode", "gradient", "integers", "rows", "completeness", "saturation",
            "sensitivity", "dummy", "invariance", "linearity" or "symmetry".
        verdict: "good"; "look" where a user should know; "bad" where attributions will be wrong or mean something else;
            "skipped" where the check does not apply.
        text: what was found and what to do, in words.
        figures: the numbers behind the words, by name.
    """

    check: str
    verdict: str
    text: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `diagnose` found; `print` shows it, and notebooks render it.

    Attributes:
        findings: in the order of the checks.
        alphas: places on the path, (n,), for the saturation plot.
        values: F at these places, (n,).
        gradients: Euclidean norm of the gradient at these places, (n,).
    """

    findings: tuple[Finding, ...]
    alphas: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    gradients: tuple[float, ...] = ()

    @property
    def good(self) -> bool:
        """Whether no finding is bad."""
        return all(finding.verdict != "bad" for finding in self.findings)

    def __getitem__(self, check: str) -> Finding:
        """Returns the finding of a check, by its name."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"there is no check {check!r}; there are {[finding.check for finding in self.findings]}")

    def plot(self) -> Figure:
        """Draws F and the norm of the gradient along the path from the baseline to the input.

        Where F is flat and gradients are small, the model is saturated: the input's own gradient says little there.

        Raises:
            ArgumentError: the path was not evaluated: a finding is bad, or the check of saturation was skipped.
            MissingPackageError: matplotlib is not installed.
        """
        if not self.alphas:
            reasons = [f.text for f in self.findings if f.check == "saturation"]
            reason = (reasons or [f.text for f in self.findings if f.verdict == "bad"] or [""])[0]
            raise ArgumentError(f"there is no path to draw: {reason}")
        figures = needed("matplotlib.figure", "to draw pictures")
        figure: Figure = figures.Figure(figsize=(6.4, 3.2), layout="constrained")
        value, norm = figure.subplots(1, 2)
        for axes, numbers, name in ((value, self.values, "F"), (norm, self.gradients, "norm of the gradient")):
            axes.plot(self.alphas, numbers, color=(0.0, 0.45, 0.7))
            axes.set_xlabel("alpha: from the baseline to the input")
            axes.set_title(name, fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
        return figure

    def __str__(self) -> str:
        return "\n".join(f"{_MARKS[f.verdict]}  {f.check:<13} {f.text}" for f in self.findings)

    def _repr_html_(self) -> str:
        """Returns a table, as a notebook shows it."""
        rows = "".join(
            f"<tr><td>{escape(f.verdict)}</td><th scope='row'>{escape(f.check)}</th><td>{escape(f.text)}</td></tr>"
            for f in self.findings
        )
        return f"<table><tbody>{rows}</tbody></table>"
