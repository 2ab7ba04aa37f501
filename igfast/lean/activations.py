"""Piecewise linear activations: the gradient has one of two slopes, so autograd saves one bit per element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from igfast._C import lean_gate, lean_gate_
from igfast.lean.handlers import NOTHING_TO_SAVE, Plain, lacks_kernel, refuses


def _gate(
    x: Tensor, activation: str, *, low: float = 0.0, high: float = 0.0, slope: float = 0.0, inplace: bool = False
) -> Tensor | Plain:
    if (why := refuses(x)) is not None:
        return why
    if (why := lacks_kernel(x)) is not None:
        return why
    if not inplace:
        return lean_gate(x, activation, low, high, slope)  # type: ignore[no-any-return]
    if x.grad_fn is None or x._is_view():  # autograd raises an error for leaves, and tracks views itself
        return NOTHING_TO_SAVE
    return lean_gate_(x, activation, low, high, slope)  # type: ignore[no-any-return]


def _relu(input: Tensor, inplace: bool = False) -> Tensor | Plain:
    return _gate(input, "relu", inplace=inplace)


def _relu_(input: Tensor) -> Tensor | Plain:
    return _gate(input, "relu", inplace=True)


def _relu6(input: Tensor, inplace: bool = False) -> Tensor | Plain:
    return _gate(input, "hardtanh", high=6.0, inplace=inplace)


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor | Plain:
    return _gate(input, "hardtanh", low=min_val, high=max_val, inplace=inplace)


def _hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor | Plain:
    return _gate(input, "hardtanh", low=min_val, high=max_val, inplace=True)


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor | Plain:
    if inplace and negative_slope < 0:  # autograd raises an error
        return NOTHING_TO_SAVE
    return _gate(input, "leaky_relu", slope=negative_slope, inplace=inplace)


def _leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor | Plain:
    return _leaky_relu(input, negative_slope, inplace=True)


def _threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor | Plain:
    return _gate(input, "threshold", low=threshold, high=value, inplace=inplace)


def _threshold_(input: Tensor, threshold: float, value: float) -> Tensor | Plain:
    return _gate(input, "threshold", low=threshold, high=value, inplace=True)


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _relu_,
    Tensor.relu_: _relu_,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: _hardtanh_,
    F.leaky_relu: _leaky_relu,
    F.leaky_relu_: _leaky_relu_,
    F.threshold: _threshold,
    torch.threshold: _threshold,
    F.threshold_: _threshold_,  # type: ignore[attr-defined]
}
