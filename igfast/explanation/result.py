"""The result of `explain`: attributions with what they are about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from igfast.errors import InputError, MissingPackageError
from igfast.explanation import files
from igfast.packages import needed
from igfast.run.report import RunReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_ROWS = 10  # of a summary


@dataclass(frozen=True, eq=False)
class Explanation:
    """Attributions, and everything that belongs to them.

    Attributes:
        attributions: as `attribute` returns them: a tensor, or a tuple or a list of tensors.
        inputs: the inputs, a tensor or a tuple of tensors, (batch, *features) each.
        baselines: where the paths began: for each input a number or a tensor. With `meta["baselines_at_layer"]`, for
            each of the layer's values instead; with `meta["averaged_over"]`, all baselines, (K, *features).
        target: the target, as it was passed.
        predictions: F(inputs), the attributed number of each example, (batch,).
        baseline_predictions: F(baselines), likewise.
        deltas: the convergence delta of each example, (batch,): the sum of the attributions less
            `predictions - baseline_predictions`.
        report: what the call did and what it cost; None if that is not known.
        meta: `method` (the class), `rule`, `n_steps`, `tolerance`, `multiply_by_inputs`, `model`,
            `baselines_at_layer`, `averaged_over`, `layer` and `versions`.
        feature_names: the names of a table's columns, or for each text the tuple of its tokens; None if not given.
        target_names: the names of the attributed classes by their numbers; None if not given.

    Where examples depend on each other, predictions and baseline predictions have one number for each entry of the
    output, and there is one delta of the totals, (1,).

    Example:
        >>> explainer = igfast.IntegratedGradients(torch.nn.Linear(3, 2))
        >>> explanation = explainer.explain(torch.ones(1, 3), target=0)
        >>> again = igfast.Explanation.from_json(explanation.to_json())
        >>> torch.equal(again.attributions, explanation.attributions)
        True
    """

    attributions: Any
    inputs: Any
    baselines: Any
    target: Any
    predictions: Tensor
    baseline_predictions: Tensor
    deltas: Tensor
    report: RunReport | None
    meta: Mapping[str, Any]
    feature_names: tuple[Any, ...] | None = None
    target_names: Mapping[int, str] | None = None

    def to_pandas(self) -> Any:
        """Returns the attributions as a DataFrame: a row for each example, and a column for each feature.

        Columns have the feature names, or numbers. Tokens have the sums over the embedding's dimensions, and columns
        with their places. Of several inputs or layers, the columns stand side by side, under the number of each.

        Raises:
            InputError: attributions with more dimensions, as of images.
            MissingPackageError: pandas is not installed.

        Example:
            >>> explainer = igfast.IntegratedGradients(torch.nn.Linear(2, 1))
            >>> explainer.explain(torch.ones(1, 2), feature_names=["rooms", "age"]).to_pandas().columns.tolist()
            ['rooms', 'age']
        """
        return as_frame(self.attributions, self.feature_names)

    def to_numpy(self) -> Any:
        """Returns the attributions as NumPy arrays, in the form of `attributions`.

        Example:
            >>> explanation = igfast.IntegratedGradients(torch.nn.Linear(3, 2)).explain(torch.ones(1, 3), target=0)
            >>> explanation.to_numpy().shape
            (1, 3)
        """
        return as_arrays(self.attributions)

    def to_json(self) -> str:
        """Returns the explanation as JSON text, without loss; tensors are base64 of their bytes.

        Example:
            >>> explanation = igfast.IntegratedGradients(torch.nn.Linear(3, 2)).explain(torch.ones(1, 3), target=0)
            >>> sorted(json.loads(explanation.to_json()))
            ['fields', 'format', 'version']
        """
        return files.to_json(vars(self))

    @classmethod
    def from_json(cls, text: str) -> Explanation:
        """Returns the explanation that `to_json` wrote, with its tensors on the CPU.

        Raises:
            ExplanationFileError: the text is damaged, is something else, or of a later version.

        Example:
            >>> explanation = igfast.IntegratedGradients(torch.nn.Linear(3, 2)).explain(torch.ones(1, 3), target=0)
            >>> igfast.Explanation.from_json(explanation.to_json()).target
            0
        """
        return files.from_json(text, cls)

    def save(self, path: str | Path) -> None:
        """Writes the explanation to a file in safetensors' format; what is not a tensor is in the file's header.

        The file appears under its name when it is complete.

        Args:
            path: of the file; an existing file is replaced.

        Raises:
            MissingPackageError: safetensors is not installed.

        Example:
            >>> explanation = igfast.IntegratedGradients(torch.nn.Linear(3, 2)).explain(torch.ones(1, 3), target=0)
            >>> explanation.save(tmp_path / "linear.safetensors")
        """
        files.save(vars(self), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Explanation:
        """Returns the explanation in a file that `save` wrote, with its tensors on the CPU.

        Raises:
            ExplanationFileError: the file is damaged, is something else, or of a later version; the message names it.
            FileNotFoundError: there is no such file.
            MissingPackageError: safetensors is not installed.

        Example:
            >>> explanation = igfast.IntegratedGradients(torch.nn.Linear(3, 2)).explain(torch.ones(1, 3), target=0)
            >>> explanation.save(tmp_path / "linear.safetensors")
            >>> igfast.Explanation.load(tmp_path / "linear.safetensors").target
            0
        """
        return files.load(Path(path), cls)

    @property
    def steps(self) -> str:
        """How many steps there were, in words: a number with the rule, or the tolerance."""
        if self.meta.get("tolerance"):
            return f"to a tolerance of {self.meta['tolerance']:g}"
        return f"{self.meta['n_steps']} steps of {self.meta['rule']}"

    def summary(self) -> str:
        """Returns a short text: what was attributed, how, and for each example how far from completeness it is.

        Example:
            >>> explainer = igfast.IntegratedGradients(torch.nn.Linear(3, 2))
            >>> print(explainer.explain(torch.ones(1, 3), target=0).summary().splitlines()[0])
            IntegratedGradients of Linear, 50 steps of gausslegendre
        """
        meta = self.meta
        layer = f", layer {meta['layer']}" if meta.get("layer") else ""
        convergence = self.report.convergence if self.report else None
        lines = [
            f"{meta['method']} of {meta['model']}{layer}, {self.steps}",
            f"inputs {_shapes(self.inputs)}, baselines {_shapes(self.baselines)}, "
            f"target {named_target(self.target, self.target_names)}",
        ]
        changes = self.predictions.double() - self.baseline_predictions.double()
        if changes.shape != self.deltas.shape:
            ends, deltas = f"{self.predictions.sum():.6g}", float(self.deltas.sum())
            return "\n".join(
                [
                    *lines,
                    f"F(inputs) {ends} in total, F(baselines) {self.baseline_predictions.sum():.6g}, "
                    f"delta {deltas:.2g}",
                ]
            )
        is_of_all = convergence is not None and len(convergence.estimate) != len(self.deltas)
        if convergence is not None and is_of_all:  # examples that depend on each other
            error, n_points = convergence.estimate[0], convergence.evaluations[0]
            lines.append(f"error +- {error:.1%} of all examples together, {n_points} path points")
            convergence = None
        head = f"{'example':>7} {'F(input)':>12} {'F(baseline)':>12} {'delta':>10} {'of the change':>14}"
        lines.append(head if convergence is None else f"{head} {'error':>8} {'path points':>12}")
        columns = (self.predictions, self.baseline_predictions, self.deltas, changes)
        for row, (at_input, at_baseline, delta, change) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            if row == _MOST_ROWS:
                lines.append(f"... and {len(self.deltas) - row} more")
                break
            share = f"{abs(delta / change):.1%}" if change else "-"
            line = f"{row:>7} {at_input:>12.5g} {at_baseline:>12.5g} {delta:>10.2g} {share:>14}"
            if convergence is not None:
                line += f" {f'+- {convergence.estimate[row]:.1%}':>8} {convergence.evaluations[row]:>12}"
            lines.append(line)
        return "\n".join(lines)

    def plot(self, *, row: int = 0, **options: Any) -> Figure:
        """Draws one example as what it is: an image, a text, a signal, or a row of a table (`igfast.viz.plot`).

        Args:
            row: the example.
            **options: of the function of `igfast.viz` that draws it.

        Returns:
            A figure, which is not shown by itself.

        Example:
            >>> explanation = igfast.IntegratedGradients(torch.nn.Linear(3, 2)).explain(torch.ones(1, 3), target=0)
            >>> len(explanation.plot().axes)
            1
        """
        from igfast.viz.plot import plot

        return plot(self, row=row, **options)

    def _repr_html_(self) -> str:
        """Returns the explanation as a notebook shows it."""
        from igfast.viz.page import fragment

        try:
            return fragment(self)
        except MissingPackageError as error:
            return f"<pre>{escape(self.summary())}</pre><p>{escape(str(error))}</p>"

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        meta = self.meta
        return f"<Explanation: {meta['method']} of {meta['model']}, attributions {_shapes(self.attributions)}>"


def as_arrays(value: Any) -> Any:
    """Returns a tensor, or a tuple or list of tensors, as NumPy arrays; bfloat16, which NumPy lacks, as float32."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return type(value)(map(as_arrays, value))


def as_frame(attributions: Any, names: tuple[Any, ...] | None) -> Any:
    """Returns attributions as a DataFrame, as `Explanation.to_pandas` does."""
    pandas = needed("pandas", "to make a DataFrame", "tables")
    if not isinstance(attributions, Tensor):
        return pandas.concat([as_frame(one, names) for one in attributions], axis=1, keys=range(len(attributions)))
    summed = attributions.sum(2) if attributions.dim() == 3 else attributions
    if summed.dim() != 2:
        raise InputError(
            f"a table has attributions (examples, features); got {tuple(attributions.shape)}. `to_numpy` takes all"
        )
    is_named = names is not None and len(names) == summed.shape[1] and isinstance(names[0], str)
    return pandas.DataFrame(as_arrays(summed), columns=list(names or ()) if is_named else range(summed.shape[1]))


def target_of(explanation: Explanation, row: int, n_rows: int) -> Any:
    """Returns the target of one of the examples; raises IndexError where targets are of other entries than examples."""
    target = explanation.target
    if isinstance(target, list) or (isinstance(target, Tensor) and target.dim() == 1):
        if len(target) not in (1, n_rows):
            raise IndexError("there are other numbers of targets and examples")
        target = target[row if len(target) > 1 else 0]
    return int(target) if isinstance(target, Tensor) else target


def classes_of(target: Any) -> list[int]:
    """Returns the numbers of the classes in a target, each once; none for places of several indices."""
    given = target.flatten().tolist() if isinstance(target, Tensor) else target
    listed = given if isinstance(given, list) else [given]
    return list(dict.fromkeys(int(c) for c in listed if isinstance(c, int)))


def named_target(target: Any, names: Mapping[int, str] | None) -> str:
    """Returns a target as text, with the names of its classes that are known."""
    known = ", ".join(names[c] for c in classes_of(target) if c in names) if names else ""
    return f"{_short(target)} ({_short(known)})" if known else _short(target)


def _shapes(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_shapes, value))
    return _short(value)


def _short(value: Any) -> str:
    text = str(value.tolist()) if isinstance(value, Tensor) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
