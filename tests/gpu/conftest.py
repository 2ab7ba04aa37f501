import os
from pathlib import Path

import pytest
import torch

from igfast.ops import build_info


def missing() -> str:
    """What tests on a GPU lack here; empty if nothing."""
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU and a CUDA build of torch"
    return "" if build_info().get("cuda") else "needs igfast's CUDA kernels (IGFAST_CUDA=1)"


def pytest_collection_modifyitems(items):
    why = missing()
    if why and os.environ.get("IGFAST_REQUIRE_GPU") == "1":
        raise pytest.UsageError(f"IGFAST_REQUIRE_GPU=1, but this {why.replace('needs', 'lacks', 1)}")
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu)
            if why:
                item.add_marker(pytest.mark.skip(reason=why))
