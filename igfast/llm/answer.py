"""Reads the answer that is attributed: its tokens, spans of these, and what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from igfast.errors import ArgumentError, ArgumentTypeError, TargetError
from igfast.request.inputs import describe


def parse_answer(target: str | Tensor, tokenizer: Any) -> Tensor:
    """Returns the ids of an answer, (tokens,) int64.

    Raises:
        ArgumentTypeError: `target` is neither a text nor a tensor of integers.
        TargetError: the answer has no token, or is not one-dimensional.
    """
    if isinstance(target, str):
        ids = torch.tensor(tokenizer.encode(target, add_special_tokens=False), dtype=torch.int64)
    elif isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype is torch.bool:
            raise ArgumentTypeError(f"target must have integers, the ids of tokens; got {describe(target)}")
        ids = target.detach().long()
    else:
        raise ArgumentTypeError(f"target must be a text, a tensor of token ids or None; got {describe(target)}")
    if ids.dim() != 1 or len(ids) == 0:
        raise TargetError(f"target must be at least one token, in one dimension; got {describe(ids)}")
    return ids


def parse_foil(foil: str | Tensor | None, answer: Tensor, tokenizer: Any) -> Tensor | None:
    """Returns the foil's ids, as many as the answer's; raises as `parse_answer`, or ArgumentError for another length.

    A text is encoded alone, as the answer is.
    """
    if foil is None:
        return None
    ids = parse_answer(foil, tokenizer)
    if len(ids) != len(answer):
        raise ArgumentError(f"foil must have as many tokens as the answer, {len(answer)}; got {len(ids)}")
    return ids


def parse_spans(spans: Sequence[tuple[int, int]] | None, per_token: bool, n_tokens: int) -> list[range]:
    """Returns the places in the answer that each row is of; raises ArgumentError and ArgumentTypeError."""
    if spans is None:
        return [range(t, t + 1) for t in range(n_tokens)] if per_token else [range(n_tokens)]
    if not per_token:
        raise ArgumentError("per_token=False is for the whole answer, without rows; got spans too")
    rows = []
    for span in spans:
        if not isinstance(span, Sequence) or len(span) != 2 or not all(type(end) is int for end in span):
            raise ArgumentTypeError(f"spans must be pairs of integers, (start, stop); got {span!r}")
        start, stop = span
        if not 0 <= start < stop <= n_tokens:
            raise ArgumentError(f"spans must lie in the answer, 0 <= start < stop <= {n_tokens}; got {(start, stop)}")
        rows.append(range(start, stop))
    if not rows:
        raise ArgumentError("spans must have at least one pair; got none")
    return rows
