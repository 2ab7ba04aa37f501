"""Overwrites a dead argument before and after torch.compile replaced the interpreter's evaluation of frames."""

import contextlib

import torch

from igfast.ops._load import kernels_loaded

assert kernels_loaded()
from igfast.lean import _liveness  # noqa: E402
from igfast.lean._mode import LeanMode  # noqa: E402


def call():
    x = torch.ones(1, 1, requires_grad=True) * 1
    before = x.data_ptr()
    x = torch.relu(x)
    return x.data_ptr() == before


def overwrites():
    with LeanMode():
        return call()


def fails_in_one_layout(x):
    return x.view(2, -1)


_liveness.WORTHWHILE_BYTES = 0
assert overwrites()
held = _liveness.held_by_calls()
images = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
with contextlib.suppress(Exception):  # an error in the middle leaves the replacement in place
    torch.compile(fails_in_one_layout, backend="eager")(images)
assert _liveness.held_by_calls() > held
assert overwrites()
