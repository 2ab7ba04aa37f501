"""Reports what a call did and what it cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class LeanReport:
    """The use of lean execution, which keeps in forward passes only what the gradient of the input needs.

    Attributes:
        off_because: why lean execution was off, or was turned off during the call; empty if it was on throughout.
        swapped: number of calls of each PyTorch function that lean execution replaced.
        plain: number of calls that ran plainly though lean execution knows the function, by function and reason.
    """

    off_because: str
    swapped: Mapping[str, int]
    plain: Mapping[tuple[str, str], int]

    def __bool__(self) -> bool:
        """Returns whether lean execution was on throughout."""
        return not self.off_because


@dataclass(frozen=True)
class Convergence:
    """How near the attributions of each example are to the integral; every tuple has one entry for each example.

    Errors are relative: the L2 norm of the error of an example's attributions over the L2 norm of the attributions.
    They are estimated from the difference D of two rules, one on every other path point, one on the points between.

    Attributes:
        evaluations: path points that the example took.
        estimate: of the relative error, D / sqrt(12).
        bound: that the relative error rarely exceeds, D / 2.
        residual: F(input) - F(baseline) less the sum of the attributions, before their correction. Empty where the
            number of steps was fixed: it is the negative of the convergence delta there.
        converged: whether D is small enough for the tolerance, and the residual tells of no error beyond the bound
            and a fifth of the tolerance. Empty without a tolerance.
        doubtful: whether the residual does tell of such an error: the points have missed something. Empty without a
            tolerance.
        tolerance: what was asked for; None where the number of steps was fixed.
    """

    evaluations: tuple[int, ...]
    estimate: tuple[float, ...]
    bound: tuple[float, ...]
    residual: tuple[float, ...] = ()
    converged: tuple[bool, ...] = ()
    doubtful: tuple[bool, ...] = ()
    tolerance: float | None = None

    @classmethod
    def of_differences(cls, evaluations: Sequence[int], differences: Sequence[float], **others: Any) -> Convergence:
        """Returns what each example's D tells, relative to the norm of its attributions."""
        estimate = tuple(difference / math.sqrt(12) for difference in differences)
        return cls(tuple(evaluations), estimate, tuple(difference / 2 for difference in differences), **others)

    @classmethod
    def of_runs(cls, runs: Sequence[Convergence]) -> Convergence:
        """Returns the evaluations of several runs with the same examples together, and the largest of their errors."""
        return cls(
            evaluations=tuple(map(sum, zip(*(run.evaluations for run in runs), strict=True))),
            estimate=tuple(map(max, zip(*(run.estimate for run in runs), strict=True))),
            bound=tuple(map(max, zip(*(run.bound for run in runs), strict=True))),
            residual=tuple(max(of, key=abs) for of in zip(*(run.residual for run in runs), strict=True)),
            converged=tuple(map(all, zip(*(run.converged for run in runs), strict=True))),
            doubtful=tuple(map(any, zip(*(run.doubtful for run in runs), strict=True))),
            tolerance=runs[0].tolerance,
        )


@dataclass(frozen=True)
class RunReport:
    """What a call of `attribute` did and what it cost; `print` shows a short table of it.

    Attributes:
        n_rows: path points of the quadrature: examples times steps; steps alone where examples depend on each other.
        n_evaluations: rows that went forward and backward; repeats of chunks in smaller ones count again.
        chunks: number of chunks for each chunk size in rows.
        channels_last: whether the path points of the last chunk were channels-last by igfast's choice.
        lean: what lean execution did.
        peak_bytes: the most that PyTorch's allocator held during the call over what it held before, memory kept for
            later tensors included. On the CPU, attributions in other threads at the same time count too. None where not
            measured: with a replaced allocator, and on CUDA without a budget if the process's peak was higher before.
            With a budget there, what operations take and free themselves may be missing.
        budget_bytes: `memory_budget` in bytes; without a budget all free memory, less a tenth; None if unknown.
        seconds: wall-clock time of the call, without the parsing of its arguments.
        device: where the call ran.
        kernels: the instruction set of the compiled operators, "cuda", or "none" where plain PyTorch was used.
        notes: what was done, in order: against lack of memory, or because rows are not independent.
        ends: F(inputs) and F(baselines), one number for each entry of the output, if the delta was asked for or the
            call needed them. For several targets, those of the first.
        convergence: how near each example is to the integral, with a tolerance or the methods `trapezoid` and
            `riemann_middle`; else None, as with `igfast.Baselines` and below 3 steps. Of several targets, the largest.
        targets: of `attribute_targets`: for each target a place of the output, or a tuple of one for each example.
        spread: with `igfast.Baselines`, the standard deviation of F over an example's baselines, if the delta was asked
            for.
    """

    n_rows: int
    n_evaluations: int
    chunks: Mapping[int, int]
    channels_last: bool
    lean: LeanReport
    peak_bytes: int | None
    budget_bytes: int | None
    seconds: float
    device: str
    kernels: str
    notes: tuple[str, ...]
    ends: tuple[Tensor, Tensor] | None = field(default=None, repr=False, compare=False)
    convergence: Convergence | None = None
    targets: tuple[Any, ...] | None = None
    spread: tuple[float, ...] | None = None

    def __str__(self) -> str:
        sizes = ", ".join(f"{count} of {rows}" for rows, count in sorted(self.chunks.items(), reverse=True))
        layout = ", channels-last" if self.channels_last else ""
        lines = [
            ("path points", f"{self.n_rows}, {self.n_evaluations} evaluated"),
            ("chunks", f"{sizes or 'none'}{layout}"),
            ("peak memory", f"{_mebibytes(self.peak_bytes)}, allowed {_mebibytes(self.budget_bytes)}"),
            ("time", f"{self.seconds:.3f} s"),
            ("device", f"{self.device}, kernels {self.kernels}"),
            ("lean execution", f"off: {self.lean.off_because}" if self.lean.off_because else "on"),
            *(("  swapped", f"{count} x {name}") for name, count in Counter(self.lean.swapped).most_common()),
            *(("  plain", f"{n} x {name}: {why}") for (name, why), n in Counter(self.lean.plain).most_common()),
            *_convergence_lines(self.convergence),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{name:<16}{value}" for name, value in lines)


def _mebibytes(n_bytes: int | None) -> str:
    return "not measured" if n_bytes is None else f"{n_bytes / 2**20:.0f} MiB"


def _convergence_lines(convergence: Convergence | None) -> list[tuple[str, str]]:
    if convergence is None or not convergence.evaluations:
        return []
    n_converged, n_doubtful, n = sum(convergence.converged), sum(convergence.doubtful), len(convergence.converged)
    unless = f", more in {n_doubtful} whose residual it does not explain" if n_doubtful else ""
    return [
        *([("converged", f"{n_converged} of {n} examples")] if n else []),
        ("error", f"about {max(convergence.estimate):.1%} at most, within {max(convergence.bound):.1%}{unless}"),
        ("evaluations", f"{min(convergence.evaluations)} to {max(convergence.evaluations)} of an example"),
    ]
