"""Linear maps and products with weights: autograd saves only the weights, which the model holds anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from igfast._C import lean_addmm, lean_linear, lean_matmul, lean_mul
from igfast.lean.gated import gated_product
from igfast.lean.handlers import NOTHING_TO_SAVE, Plain, is_parameter, refuses


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | Plain:
    why = refuses(input, weight, bias)
    if why is not None or weight.dim() != 2:
        return NOTHING_TO_SAVE if why is None else why
    return lean_linear(input, weight, bias)  # type: ignore[no-any-return]


def _matmul(input: Tensor, other: Tensor, **options: Any) -> Tensor | Plain:
    """Handles products with a matrix of weights on the right; a product of two activations must save both."""
    if options or not is_parameter(other) or other.dim() != 2 or input.dim() < 2:
        return NOTHING_TO_SAVE
    why = refuses(input, other)
    return lean_matmul(input, other) if why is None else why


def _mm(input: Tensor, mat2: Tensor, *out_dtype: Any, **options: Any) -> Tensor | Plain:
    return NOTHING_TO_SAVE if out_dtype else _matmul(input, mat2, **options)


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *out_dtype: Any, **options: Any) -> Tensor | Plain:
    if out_dtype or options or not is_parameter(mat2) or not is_parameter(input):
        return NOTHING_TO_SAVE
    why = refuses(mat1, mat2, input)
    return lean_addmm(input, mat1, mat2) if why is None else why


def _mul(input: Any, other: Any, **options: Any) -> Tensor | Plain:
    if not options and (product := gated_product(input, other)) is not None:
        return product
    if is_parameter(input):
        input, other = other, input
    if options or not is_parameter(other) or is_parameter(input) or not isinstance(input, Tensor):
        return NOTHING_TO_SAVE
    why = refuses(input, other)
    return lean_mul(input, other) if why is None else why


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    torch.mm: _mm,
    Tensor.mm: _mm,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    torch.mul: _mul,
    Tensor.mul: _mul,
}
