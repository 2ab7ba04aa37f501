"""Explains many files: results are written as they come, and a rerun goes on where the last run stopped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from igfast.errors import CommandError, ExplanationFileError
from igfast.explanation import Explanation
from igfast.explanation.files import remove_unfinished, written

ALL_DONE, NOTHING_STARTED, SOME_FAILED = 0, 1, 2
"""The exit statuses of the commands."""


@dataclass(frozen=True)
class Job:
    """One file to explain.

    Attributes:
        source: the file.
        result: where its explanation goes.
        picture: where its picture goes; written before the result, so that a result is the sign of a finished job.
    """

    source: Path
    result: Path
    picture: Path


def files_in(folder: Path) -> list[Path]:
    """Returns the files below a folder in the order of their names, without hidden ones."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def jobs_of(paths: Sequence[Path], out: Path, endings: Sequence[str]) -> list[Job]:
    """Returns the jobs for files and folders; of folders, all files but hidden ones and those in `out`.

    A file that is named is taken whatever its ending. In folders, files with other endings than `endings` are taken
    too, so that a broken or foreign file is reported and not passed over.

    Raises:
        CommandError: a path does not exist, or there is no file.
    """
    found: dict[Path, Path] = {}  # the file, and its name below what was asked for
    for path in paths:
        if not path.exists():
            raise CommandError(f"there is no file or folder {path}")
        if path.is_dir() and (path.resolve() == out.resolve() or out.resolve() in path.resolve().parents):
            raise CommandError(f"--out must be another folder than that of the files; got {out}")
        for file in files_in(path) if path.is_dir() else [path]:
            relative = file.relative_to(path) if path.is_dir() else Path(file.name)
            if not path.is_dir() or out.resolve() not in file.resolve().parents:
                found.setdefault(file.resolve(), relative)
    if not found:
        raise CommandError(f"there is no file in {', '.join(map(str, paths))}; {', '.join(endings)} are explained")
    jobs, taken = [], set[Path]()
    for file, relative in found.items():
        name, number = relative, 1
        while name in taken:  # files of one name from several folders
            number += 1
            name = relative.with_name(f"{relative.stem}-{number}{relative.suffix}")
        taken.add(name)
        jobs.append(Job(file, out / f"{name}.safetensors", out / f"{name}.png"))
        for written_to in (jobs[-1].result, jobs[-1].picture):
            if written_to.resolve() in found:
                raise CommandError(
                    f"--out must be another folder: {written_to} would be replaced, and is to be explained"
                )
    return jobs


def run_jobs(
    jobs: Sequence[Job],
    request_of: Callable[[Path], Mapping[str, Any]],
    explain: Callable[[Path], Explanation],
    draw: Callable[[Explanation, Path], None],
    *,
    as_json: bool,
) -> int:
    """Explains the files that have no result of the same request yet, and returns the exit status.

    A file that another process works on is left for later. Results carry the request in their `meta`.

    Args:
        jobs: what to do.
        request_of: everything that a file's result depends on; raises for files that cannot be read.
        explain: makes the explanation of a file; may raise anything for a broken file.
        draw: writes a picture.
        as_json: print one JSON object for each file instead of text and a progress bar.
    """
    counts = {"done": 0, "reused": 0, "failed": 0}
    with _progress(len(jobs), as_json) as advance:
        waiting, patient = list(jobs), False
        while waiting:
            busy = []
            for job in waiting:
                status, said = _one(job, request_of, explain, draw, patient)
                if status == "busy":
                    busy.append(job)
                    continue
                counts[status] += 1
                advance(job, status, said)
            waiting, patient = busy, True
    if not as_json:
        parts = [f"{counts['done']} explained", f"{counts['reused']} had results already", f"{counts['failed']} failed"]
        print(", ".join(part for part in parts if not part.startswith("0 ")) or "nothing to do")
    return SOME_FAILED if counts["failed"] else ALL_DONE


def _one(
    job: Job,
    request_of: Callable[[Path], Mapping[str, Any]],
    explain: Callable[[Path], Explanation],
    draw: Callable[[Explanation, Path], None],
    patient: bool,
) -> tuple[str, dict[str, Any]]:
    """Explains one file, and returns "done", "reused", "failed" or "busy", and what is to be said of it."""
    try:
        with _claimed(job.source, patient) as mine:
            if not mine:
                return "busy", {}
            request = dict(request_of(job.source))
            known = _known(job, request)
            if known is not None:
                return "reused", _said(known, job)
            _check_source(job, request)
            for path in (job.picture, job.result):
                remove_unfinished(path)
            explanation = explain(job.source)
            explanation = replace(explanation, meta={**explanation.meta, "request": request})
            with _lockable(job.result.parent) as lock:
                with written(job.picture) as temporary:
                    draw(explanation, temporary)
                    lock()
                    _check_source(job, request)  # again: another process may have explained a file of this name
                    job.result.unlink(missing_ok=True)  # no result stands beside a picture of another request
                explanation.save(job.result)
            return "done", _said(explanation, job)
    except Exception as error:  # a broken file may make a reader or a model raise anything
        return "failed", {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def as_line(value: Any) -> str:
    """Returns a value as one line of JSON, with null for NaN and infinities."""

    def finite(one: Any) -> Any:
        if isinstance(one, Mapping):
            return {key: finite(each) for key, each in one.items()}
        if isinstance(one, (list, tuple)):
            return [finite(each) for each in one]
        return None if isinstance(one, float) and not math.isfinite(one) else one

    return json.dumps(finite(value), allow_nan=False)


@contextmanager
def _claimed(path: Path, patient: bool) -> Iterator[bool]:
    """Locks a file against other processes of this command while it is explained; the lock ends with the process."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks: a file may be explained twice, with the same result
            pass
        yield True


@contextmanager
def _lockable(folder: Path) -> Iterator[Callable[[], None]]:
    """Gives a function that locks a folder against other processes of this command until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)

    def lock() -> None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_EX)

    try:
        yield lock
    finally:
        os.close(opened)


def _known(job: Job, request: Mapping[str, Any]) -> Explanation | None:
    """Returns the explanation of an earlier run of the same request, or None."""
    if not job.result.exists() or not job.picture.exists():
        return None
    with contextlib.suppress(ExplanationFileError, OSError):
        known = Explanation.load(job.result)
        return known if known.meta.get("request") == request else None
    return None


def _check_source(job: Job, request: Mapping[str, Any]) -> None:
    """Raises CommandError if a result of another file has the name of this file's."""
    if not job.result.exists():
        return
    with contextlib.suppress(ExplanationFileError, OSError):
        other = Explanation.load(job.result).meta.get("request", {}).get("source")
        if other != request.get("source"):
            raise CommandError(f"{job.result} is the result of {other}; choose another --out")


def figures_of(explanation: Explanation) -> dict[str, Any]:
    """Returns the target, prediction and delta of the first example, for a line of JSON."""
    return {
        "target": explanation.target,
        "prediction": float(explanation.predictions[0]),
        "delta": float(explanation.deltas[0]),
    }


def _said(explanation: Explanation, job: Job) -> dict[str, Any]:
    return {**figures_of(explanation), "result": str(job.result), "picture": str(job.picture)}


@contextmanager
def _progress(total: int, as_json: bool) -> Iterator[Callable[[Job, str, dict[str, Any]], None]]:
    """Gives a function to call after each file: prints the file, and moves a progress bar that knows the time left."""
    if as_json:
        yield lambda job, status, said: print(as_line({"path": str(job.source), "status": status, **said}), flush=True)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    columns = (TextColumn("igfast"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)

        def advance(job: Job, status: str, said: dict[str, Any]) -> None:
            if status == "failed":
                progress.console.print(
                    f"{escape(str(job.source))}: {escape(said['error'])}", style="red", soft_wrap=True
                )
            progress.advance(task)

        yield advance
