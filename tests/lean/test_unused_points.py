"""Path points are freed before the backward pass where it does not ask for them, and nobody else."""

import pytest
import torch
from torch import nn

from igfast.ops._load import kernels_loaded

assert kernels_loaded()
from igfast.lean import _liveness  # noqa: E402
from igfast.lean._mode import LeanMode  # noqa: E402

CONV = nn.Conv2d(3, 2, 3).requires_grad_(False)
KEPT = []
USES = {
    "for its shape": (lambda x: CONV(x), True),
    "not at all": (lambda x: x + 1, True),
    "saved": (lambda x: x * x, False),
    "kept": (lambda x: KEPT.append(x) or x + 1, False),
    "a view saved": (lambda x: x[:, :1] * x[:, 1:2], False),
    "a view kept": (lambda x: KEPT.append(x[:, 1:]) or x + 1, False),
    "memory kept": (lambda x: KEPT.append(x.untyped_storage()) or x + 1, False),
}


@pytest.mark.parametrize("use", USES)
def test_path_points_are_freed_where_nothing_asks_for_them(use, monkeypatch):
    monkeypatch.setattr(_liveness, "WORTHWHILE_BYTES", 0)
    function, frees = USES[use]
    buffer = torch.zeros(2, 3, 6, 6)
    point = buffer[:1]
    leaves = (point.detach().requires_grad_(),)
    with LeanMode():
        output = function(leaves[0])
    _liveness.empty_unused(leaves)
    assert (buffer.untyped_storage().nbytes() == 0) is frees
    assert output.requires_grad
    assert point.shape == (1, 3, 6, 6)
