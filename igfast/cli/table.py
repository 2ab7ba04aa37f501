"""`igfast table`: explains the rows of a CSV or Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import igfast
from igfast.cli.models import target_of
from igfast.errors import CommandError, MissingPackageError
from igfast.explanation.files import written


def explain_table(
    model: nn.Module,
    data: Path,
    out: Path,
    *,
    columns: Sequence[str],
    target: str,
    baseline: str,
    n_steps: int,
) -> int:
    """Writes a table with the columns of another and its attributions; returns the number of rows.

    Args:
        model: from (rows, columns) of the model's dtype to one number for each row, or for each class.
        data: a CSV file, or a Parquet file by its ending.
        out: where the result goes, in the same format. Columns `attribution:<name>`, `prediction` and `delta` are new.
        columns: what the model takes, in this order; all columns with numbers if empty.
        target: as --target has it; "top1" is that of the first row, for all rows.
        baseline: "mean" (of the columns), "zero" or a number.
        n_steps: points along the path.

    Raises:
        CommandError: there is no such file or column, or a value is missing.
        MissingPackageError: pandas is not installed, or pyarrow for Parquet.
    """
    pandas = _pandas()
    is_parquet = data.suffix.lower() in (".parquet", ".pq")
    try:
        table = pandas.read_parquet(data) if is_parquet else pandas.read_csv(data)
    except ImportError as error:
        raise MissingPackageError(
            f'pyarrow is needed to read Parquet: pip install "igfast[tables]" ({error})'
        ) from None
    except Exception as error:  # readers raise many kinds of errors for broken files
        raise CommandError(f"{data} cannot be read: {type(error).__name__}: {error}") from error
    names = list(columns) or [str(name) for name in table.select_dtypes("number").columns]
    numbers = _numbers(table, names, data)
    parameter = next(model.parameters(), torch.zeros(1))
    x = torch.tensor(numbers).to(parameter.device, parameter.dtype)
    with torch.no_grad():
        picked = target_of(target, model(x[:1]))
    explainer = igfast.IntegratedGradients(model)
    explanation = explainer.explain(x, _start(baseline, x), picked, n_steps=n_steps, feature_names=names)
    for index, name in enumerate(names):
        table[f"attribution:{name}"] = explanation.attributions[:, index].cpu().numpy()
    table["prediction"] = explanation.predictions.float().cpu().numpy()
    table["delta"] = explanation.deltas.float().cpu().numpy()
    with written(out) as temporary:
        table.to_parquet(temporary, index=False) if is_parquet else table.to_csv(temporary, index=False)
    return len(table)


def _pandas() -> Any:
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise MissingPackageError.of("to explain tables", error, "tables") from None
    return pandas


def _numbers(table: Any, names: Sequence[str], data: Path) -> np.ndarray[Any, Any]:
    if not len(table):
        raise CommandError(f"{data} has no rows")
    missing = [name for name in names if name not in table.columns]
    if missing or not names:
        raise CommandError(f"{data} has no column {missing or 'with numbers'}; it has {list(map(str, table.columns))}")
    try:
        numbers: np.ndarray[Any, Any] = table[list(names)].to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise CommandError(f"--columns must name columns with numbers: {error}") from error
    rows, columns = np.nonzero(~np.isfinite(numbers))
    if len(rows):
        raise CommandError(f"{data} has no number in row {rows[0] + 1}, column {names[columns[0]]!r}: fill or drop it")
    return numbers


def _start(baseline: str, x: torch.Tensor) -> Any:
    if baseline == "mean":
        return igfast.baselines.data_mean(x, x)
    if baseline == "zero":
        return 0
    try:
        return float(baseline)
    except ValueError:
        raise CommandError(f"--baseline must be mean, zero or a number; got {baseline!r}") from None
