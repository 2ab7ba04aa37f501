"""`python -m igfast run script.py`: runs an unmodified script with igfast in Captum's place."""

from __future__ import annotations

import argparse
import functools
import runpy
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from igfast.cli.folder import NOTHING_STARTED
from igfast.patching import OURS, patch_captum

_CLASSES: tuple[Any, ...] = tuple(OURS.values())


def run_swapped(script: str, arguments: Sequence[str], is_module: bool) -> None:
    """Runs a script with igfast's classes; then prints to standard error what was swapped and how often it was called.

    Args:
        script: path of a script, or name of a module.
        arguments: `sys.argv` of the script, without its name.
        is_module: whether `script` is the name of a module.
    """
    with patch_captum() as patch, _counting() as calls:
        before = sys.argv, sys.path.copy()
        sys.argv = [script, *arguments]
        try:
            if is_module:
                sys.path.insert(0, str(Path.cwd()))
                runpy.run_module(script, run_name="__main__", alter_sys=True)
            else:
                sys.path.insert(0, str(Path(script).resolve().parent))
                runpy.run_path(script, run_name="__main__")
        finally:
            sys.argv, sys.path[:] = before
            print("igfast: in Captum's place, calls of attribute:", file=sys.stderr)
            for cls in [cls for cls in _CLASSES if calls[cls.__name__] or "Gradients" in cls.__name__]:
                print(f"  {cls.__name__:<28} {calls[cls.__name__]:>6}", file=sys.stderr)
            print(f"igfast: swapped {', '.join(patch.replaced)}", file=sys.stderr)
            for left in patch.not_replaced:
                print(f"igfast: not swapped: {left}", file=sys.stderr)


@contextmanager
def _counting() -> Iterator[Counter[str]]:
    """Counts calls of `attribute` during the block, also those through `__wrapped__`, which Captum's own code makes."""
    calls: Counter[str] = Counter()
    originals = {cls: cls.attribute for cls in _CLASSES}

    def counted(name: str, attribute: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(attribute)
        def count(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return attribute(*args, **kwargs)

        return count

    for cls, original in originals.items():
        replacement = counted(cls.__name__, original)
        if hasattr(original, "__wrapped__"):
            replacement.__wrapped__ = counted(cls.__name__, original.__wrapped__)  # type: ignore
        cls.attribute = replacement
    try:
        yield calls
    finally:
        for cls, original in originals.items():
            cls.attribute = original


def run_command(arguments: Sequence[str]) -> int:
    """Runs `script arguments...` or `-m module arguments...`, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="igfast run",
        description="Runs a script with igfast in Captum's place.",
        epilog="Example: igfast run train.py --epochs 3",
    )
    parser.add_argument("-m", action="store_true", dest="is_module", help="a module by its name, as python -m takes it")
    parser.add_argument("script", help="the script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments").required = False
    options = parser.parse_args(arguments)
    if not options.is_module and not Path(options.script).exists():
        print(f"igfast run: there is no {options.script}", file=sys.stderr)
        return NOTHING_STARTED
    run_swapped(options.script, options.arguments, options.is_module)
    return 0
