"""`igfast info`: versions, for bug reports."""

from __future__ import annotations

import json

import torch

import igfast
from igfast.ops import build_info


def print_versions() -> int:
    """Prints versions and how the kernels were built, and returns the exit status."""
    versions = {"igfast": igfast.__version__, "torch": torch.__version__}
    print(json.dumps({**versions, "kernels": build_info()}, indent=2))
    return 0
