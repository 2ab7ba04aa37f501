"""Eval-mode batch norm: autograd saves only the weight and the running variance, which the model holds anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from igfast._C import lean_batch_norm
from igfast.lean.handlers import Plain, lacks_kernel, refuses


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Tensor | Plain:
    if training or running_mean is None or running_var is None:
        return Plain("batch norm in training mode")
    if (why := refuses(input, running_mean, running_var, weight, bias)) is not None:
        return why
    if (why := lacks_kernel(input)) is not None:
        return why
    return lean_batch_norm(input, weight, bias, running_mean, running_var, eps)  # type: ignore[no-any-return]


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,  # noqa: ARG001
) -> Tensor | Plain:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    torch.batch_norm: _torch_batch_norm,
}
