"""Finds the special tokens of a tokenizer of Hugging Face's interface."""

from __future__ import annotations

from typing import Any

from igfast.errors import ArgumentError

NAMES = ("pad", "bos", "eos", "unk", "mask", "cls", "sep")


def special_ids(tokenizer: Any) -> dict[str, int]:
    """Returns the ids of the special tokens that a tokenizer has, by name."""
    found = {name: getattr(tokenizer, f"{name}_token_id", None) for name in NAMES}
    return {name: int(token) for name, token in found.items() if token is not None}


def special_id(tokenizer: Any, name: str) -> int:
    """Returns the id of a special token; raises ArgumentError if the tokenizer has none of that name."""
    ids = special_ids(tokenizer)
    if name not in ids:
        raise ArgumentError(f"the tokenizer has no {name}_token_id; it has {', '.join(ids) or 'none'}")
    return ids[name]
