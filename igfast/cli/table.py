"""`igfast table`: explains the rows of a CSV or Parquet file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

import igfast
from igfast.cli.models import output_of, targets_of
from igfast.errors import CommandError, MissingPackageError
from igfast.explanation.files import written
from igfast.model.modules import device_of, floating_dtype
from igfast.packages import needed

_BLOCK = 4096  # rows, between which the bar moves
_COMPRESSION = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}


def explain_table(
    model: nn.Module,
    data: Path,
    out: Path,
    *,
    columns: Sequence[str],
    target: str,
    baseline: str,
    n_steps: int,
    progress: bool,
) -> int:
    """Writes a table with the columns of another and its attributions; returns the number of rows.

    Args:
        model: from (rows, columns) of the model's dtype to one number for each row, or for each class.
        data: a CSV file, or a Parquet file by its ending.
        out: where the result goes, in the same format; compressed as its ending says. Columns `attribution:<name>`,
            `prediction`, `delta` and, unless `target` is "none", `target` are new: the class, the output for it, and
            its delta.
        columns: what the model takes, in this order; all columns with numbers if empty.
        target: as --target has it; "top1" is each row's own.
        baseline: "mean" (of the columns), "zero" or a number.
        n_steps: points along the path.
        progress: show a bar that knows the time left.

    Raises:
        CommandError: there is no such file or column, a value is missing, or rows have more values than the header.
        MissingPackageError: pandas is not installed, or pyarrow for Parquet.
    """
    pandas = needed("pandas", "to explain tables", "tables")
    if out.resolve() == data.resolve():
        raise CommandError(f"--out must be another file than the table; got {out}")
    is_parquet = _is_parquet(data)
    if is_parquet != _is_parquet(out):
        raise CommandError(f"--out must have the format of {data}; got {out}")
    if out.suffix.lower() in (".zip", ".tar", ".zst"):
        raise CommandError(f"--out may be compressed as {', '.join(_COMPRESSION)}; got {out}")
    try:
        table = pandas.read_parquet(data) if is_parquet else pandas.read_csv(data)
        # What is not explained is copied as it is written: 00123 stays 00123.
        result = table.copy() if is_parquet else pandas.read_csv(data, dtype=str, keep_default_na=False)
    except ImportError as error:
        raise MissingPackageError(f'pyarrow reads Parquet: pip install "igfast[tables]" ({error})') from None
    except Exception as error:  # readers raise many kinds of errors for broken files
        raise CommandError(f"{data} cannot be read: {type(error).__name__}: {error}") from error
    if not is_parquet and not isinstance(result.index, pandas.RangeIndex):  # pandas took the first column as names
        raise CommandError(f"{data} has rows with more values than the header has names")
    table.columns, result.columns = table.columns.map(str), result.columns.map(str)  # Parquet may number them
    names = list(columns) or [str(name) for name in table.select_dtypes("number").columns]
    if not is_parquet and all(map(_is_number, table.columns)):
        raise CommandError(f"{data} must begin with names of columns; got {', '.join(table.columns)}")
    numbers = _numbers(table, names, data)
    new = [*(f"attribution:{name}" for name in names), "prediction", "delta", *(["target"] * (target != "none"))]
    clash = [name for name in new if name in table.columns]
    if clash:
        raise CommandError(
            f"{data} has columns {clash} already; name those to explain with --columns, and rename these"
        )
    device = device_of(model) or "cpu"
    x = torch.tensor(numbers).to(device, floating_dtype(model) or torch.float32)
    if not bool(x.isfinite().all()):
        raise CommandError(f"{data} has numbers that are infinite in the model's dtype, {x.dtype}")
    start = _start(baseline, x)
    with written(out) as temporary:  # before the work, which a folder that cannot be written would waste
        blocks = track(x.split(_BLOCK), "igfast", console=Console(stderr=True), disable=not progress)
        parts = [_explained(model, block, start, target, n_steps, names) for block in blocks]
        found, picked = torch.cat([values for values, _ in parts]), [place for _, places in parts for place in places]
        columns_of = [*found.double().cpu().T.numpy(), *([picked] if picked else [])]
        for name, column in zip(new, columns_of, strict=True):
            result[name] = column
        if is_parquet:
            result.to_parquet(temporary)
        else:
            result.to_csv(temporary, index=False, compression=_COMPRESSION.get(out.suffix.lower()))
    return len(result)


def _explained(
    model: nn.Module, x: torch.Tensor, start: Any, target: str, n_steps: int, names: Sequence[str]
) -> tuple[torch.Tensor, list[int]]:
    """Returns for each row its attributions, prediction and delta, (rows, columns + 2), and the targets, if any."""
    picked = targets_of(target, output_of(model, x, f"rows of the columns {', '.join(names)}"))
    explanation = igfast.IntegratedGradients(model).explain(x, start, picked, n_steps=n_steps)
    ends = (explanation.predictions[:, None], explanation.deltas[:, None])
    return torch.cat([explanation.attributions, *ends], dim=1), picked or []


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".pq")


def _numbers(table: Any, names: Sequence[str], data: Path) -> np.ndarray[Any, Any]:
    if not len(table):
        raise CommandError(f"{data} has no rows")
    if len(set(names)) < len(names):
        raise CommandError(f"--columns must name each column once; got {', '.join(names)}")
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


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _start(baseline: str, x: torch.Tensor) -> Any:
    if baseline == "mean":
        if len(x) == 1:
            raise CommandError("--baseline mean is the row itself where there is one; pass zero or a number")
        return igfast.baselines.data_mean(x[:1], x)
    if baseline == "zero":
        return 0
    if not _is_number(baseline) or not math.isfinite(float(baseline)):
        raise CommandError(f"--baseline must be mean, zero or a finite number; got {baseline!r}")
    return float(baseline)
