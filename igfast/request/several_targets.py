"""Checks several targets, which are attributed in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from igfast.errors import OutputError, TargetError, TargetTypeError
from igfast.request.inputs import describe
from igfast.request.target import Target, parse_target


def parse_targets(targets: Any) -> tuple[Target, ...] | int:
    """Returns targets, or k for "topk", the k classes with the largest outputs of each example.

    Raises:
        TargetTypeError: neither "topk" nor a list, a tuple or a one-dimensional tensor; or targets of several kinds.
        TargetError: no targets, or k is 0.
    """
    if isinstance(targets, str):
        if not (targets.startswith("top") and targets[3:].isdigit()):
            raise TargetTypeError(f'targets must be "top5", say, or a list of targets; got {targets!r}')
        if int(targets[3:]) == 0:
            raise TargetError('targets must be at least "top1"; got "top0"')
        return int(targets[3:])
    if isinstance(targets, (Tensor, np.ndarray)) and targets.ndim == 1:
        targets = targets.tolist()
    if not isinstance(targets, (list, tuple)):
        raise TargetTypeError(f"targets must be a list of targets; got {describe(targets)}")
    if not targets:
        raise TargetError("targets must hold at least one target; got none")
    if None in [target for target in targets if not isinstance(target, (Tensor, np.ndarray))]:
        raise TargetTypeError("targets must not hold None: a model with one output has one target, for attribute")
    parsed = tuple(map(parse_target, targets))
    if len({_kind(target) for target in parsed}) > 1:
        raise TargetTypeError(
            "targets must be of one kind, all for every example or all with one for each example, with as many "
            f"indices; got {', '.join(describe(target) for target in targets)}"
        )
    return parsed


def _kind(target: Target) -> tuple[bool, int]:
    return (False, len(target.place)) if target.places is None else (True, target.places.shape[1])


def top_targets(output: Any, k: int, batch: int) -> tuple[Target, ...]:
    """Returns the k classes with the largest outputs of each example, the largest first.

    Raises:
        OutputError: the output is not (batch, classes).
        TargetError: there are fewer classes.
    """
    if isinstance(output, Tensor) and output.dim() == 1 and batch == 1:
        output = output.unsqueeze(0)  # models drop the dimension of a single example
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise OutputError(
            f'targets="top{k}" needs an output (batch, classes); forward_func returned {describe(output)}'
        )
    if output.shape[1] < k:
        raise TargetError(f'targets is "top{k}", but forward_func returned {output.shape[1]} classes')
    classes = torch.topk(output, k, dim=1).indices.to("cpu", torch.int64)
    return tuple(Target(places=column.unsqueeze(1)) for column in classes.unbind(dim=1))
