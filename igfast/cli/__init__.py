"""The command line: `igfast`, or `python -m igfast`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from igfast.cli.folder import NOTHING_STARTED
from igfast.errors import IgfastError, MissingPackageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the process's exit status.

    The status is 0 if all was done, 2 if some of it failed, and 1 if nothing could start.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["run"]:  # outside the try block: errors are the script's own, and so are its options
        from igfast.cli.run import run_command

        return run_command(given[1:])
    if given == ["info"]:  # for bug reports, whatever is installed
        from igfast.cli.versions import print_versions

        return print_versions()
    try:
        from igfast.cli.app import run_app
    except ModuleNotFoundError as error:
        print(f"igfast: {MissingPackageError.of('for commands', error)}", file=sys.stderr)
        return NOTHING_STARTED
    try:
        return run_app(given)
    except KeyboardInterrupt:
        print("igfast: stopped", file=sys.stderr)
    except (IgfastError, ModuleNotFoundError, OSError) as error:  # a folder that cannot be written, say
        print(f"igfast: {error}", file=sys.stderr)
    return NOTHING_STARTED
