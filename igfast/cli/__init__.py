"""The command line: `python -m igfast demo`, `run` and `info`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

import igfast
from igfast.errors import KernelsError
from igfast.ops import build_info


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m igfast", description="Integrated Gradients in bounded memory.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="explain a photograph with igfast and with Captum, side by side, or a text")
    demo.add_argument(
        "subject", nargs="?", choices=("photograph", "text"), default="photograph", help="what to explain"
    )
    demo.add_argument("--out", type=Path, default=Path("igfast-demo"), help="folder for what is written")
    demo.add_argument("--n-steps", type=int, default=50, help="points along the path (default: 50)")
    demo.add_argument(
        "--large-side", type=int, help="side of the large image (default: where Captum's default no longer fits)"
    )
    run = commands.add_parser("run", help="run an unmodified script with igfast in Captum's place")
    run.add_argument("-m", action="store_true", dest="is_module", help="a module by its name, as python -m takes it")
    run.add_argument("script", help="the script")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    commands.add_parser("info", help="print versions and how the kernels were built, for bug reports")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the process's exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "run":  # outside the try block: errors are the script's own
        from igfast.cli.run import run_swapped

        run_swapped(options.script, options.arguments, options.is_module)
        return 0
    try:
        if options.command == "info":
            versions = {"igfast": igfast.__version__, "torch": torch.__version__}
            print(json.dumps({**versions, "kernels": build_info()}, indent=2))
            return 0
        if options.subject == "text":
            from igfast.cli.text import run_text_demo

            run_text_demo(options.out, options.n_steps)
            return 0
        from igfast.cli.demo import run_demo

        run_demo(options.out, options.n_steps, options.large_side)
    except (KernelsError, ModuleNotFoundError) as error:
        print(f"igfast: {error}")
        return 1
    return 0
