"""Imports packages that explanations need and attributions do not."""

from __future__ import annotations

import importlib
from typing import Any

from igfast.errors import MissingPackageError


def needed(module: str, what: str, extra: str = "explain") -> Any:
    """Returns a module of a package that may not be installed.

    Args:
        module: the module.
        what: what the package is needed for, "to draw pictures", for the message.
        extra: the extra of igfast that brings the package.

    Raises:
        MissingPackageError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError.of(what, error, extra) from None
