"""Checks that one forward pass of a prompt and its whole answer scores each token as a pass that ends before it does.

That holds if every position sees only those before it, and nothing depends on the sequence's length or on chance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from igfast.llm.teacher import Teacher, unwrapped

_OF_ANOTHER_LENGTH = {"single": 256.0, "half": 32.0}  # times epsilon: kernels for another length round differently
_OF_SAME_LENGTH = {"single": 16.0, "half": 4.0}
_GROWS = {"dynamic", "longrope"}  # rotary embeddings that change once a sequence is longer than in training


def why_depends_on_length(model: nn.Module, n_positions: int) -> str:
    """Returns why a model's positions depend on the length of the sequence, as its configuration says; else empty."""
    config = getattr(unwrapped(model), "config", None)
    for part in (config, getattr(config, "text_config", None)):
        for rope in _ropes(part):
            kind = rope.get("rope_type", rope.get("type"))
            trained = rope.get("original_max_position_embeddings") or getattr(
                part, "original_max_position_embeddings", None
            )
            trained = trained or getattr(part, "max_position_embeddings", None)
            if kind in _GROWS and (trained is None or n_positions > trained):
                return f"rotary embeddings of type {kind!r} change with the length beyond {trained} tokens"
    return ""


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Returns the parameters of rotary embeddings in a configuration, one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        given = getattr(config, name, None)
        if isinstance(given, dict):
            each = [value for value in given.values() if isinstance(value, dict)]
            return each or [given]
    return []


def why_not_one_pass(teacher: Teacher, ends: list[tuple[Tensor, Tensor]]) -> str:
    """Returns why one pass does not score each token as passes of its own do; empty if it does. Forward passes only.

    The first token's score is computed without the rest of the answer. Then the answer's second half is replaced, which
    must leave the scores before it as they are.

    Args:
        teacher: of the whole answer.
        ends: what the teacher was given at the paths' ends, the input first, (1, positions), and the log-probabilities
            of the answer's tokens there, (tokens,) float64.
    """
    if len(teacher.answer) == 1:
        return ""
    first = teacher.until(1)
    for ids, wanted in ends:
        alone = _log_probs(first, teacher.without_end(ids, 1))
        if not _near(alone, wanted[:1], first.dtype, _OF_ANOTHER_LENGTH):
            return _differs(
                "the prediction of the first token changes when the rest of the answer follows", alone, wanted
            )
    ids, wanted = ends[0]
    n_kept = (len(teacher.answer) - 1) // 2
    changed = _log_probs(*teacher.with_another_end(ids, n_kept))[: n_kept + 1]
    if not _near(changed, wanted[: n_kept + 1], teacher.dtype, _OF_SAME_LENGTH):
        return _differs("the prediction of a token changes with the tokens after it", changed, wanted[: n_kept + 1])
    return ""


def _log_probs(teacher: Teacher, ids: Tensor) -> Tensor:
    with teacher.recorded() as seen:
        teacher(ids)
    return seen[0]


def _near(one: Tensor, other: Tensor, dtype: torch.dtype, allowed: dict[str, float]) -> bool:
    """Returns whether log-probabilities differ by rounding alone; float64 models may round to float32 inside."""
    is_half = dtype.itemsize < 4
    most = allowed["half" if is_half else "single"] * torch.finfo(dtype if is_half else torch.float32).eps
    return bool(((one - other).abs() <= most * other.abs().clamp(min=1)).all())


def _differs(what: str, one: Tensor, other: Tensor) -> str:
    return f"{what} (log-probabilities differ by {float((one - other[: len(one)]).abs().max()):.1e})"
