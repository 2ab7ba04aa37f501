"""Baselines of token ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from igfast.errors import InputTypeError
from igfast.request.inputs import describe
from igfast.request.model_inputs import AtLayer
from igfast.request.special_tokens import special_id


def pad_tokens(ids: Tensor, tokenizer: Any) -> Tensor:
    """Returns the ids with padding tokens in the place of words. The usual choice for texts; special tokens stay.

    Args:
        ids: token ids, (batch, tokens), of any integer dtype.
        tokenizer: a tokenizer of Hugging Face's interface (`pad_token_id`, `all_special_ids`).

    Returns:
        (batch, tokens), of the dtype of `ids`.

    Raises:
        InputTypeError: `ids` is not an integer tensor.
        ArgumentError: the tokenizer has no such token; the message names those that it has.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 6.4 (zero embeddings, which padding tokens have in
        models that were trained so).

    Example:
        >>> from types import SimpleNamespace
        >>> tokenizer = SimpleNamespace(pad_token_id=0, all_special_ids=[0, 1, 2])
        >>> igfast.baselines.pad_tokens(torch.tensor([[1, 7, 8, 2]]), tokenizer)
        tensor([[1, 0, 0, 2]])
    """
    return _replaced(ids, tokenizer, "pad")


def mask_tokens(ids: Tensor, tokenizer: Any) -> Tensor:
    """Returns the ids with mask tokens in the place of words, for models that were trained to fill them in.

    Args:
        ids: token ids, (batch, tokens), of any integer dtype.
        tokenizer: as in `pad_tokens`, with `mask_token_id`.

    Returns:
        (batch, tokens), of the dtype of `ids`.

    Raises:
        InputTypeError, ArgumentError: as in `pad_tokens`.

    Source: Devlin and others 2018, arXiv:1810.04805, section 3.1 (what the mask token stands for).

    Example:
        >>> from types import SimpleNamespace
        >>> tokenizer = SimpleNamespace(mask_token_id=9, all_special_ids=[1, 2, 9])
        >>> igfast.baselines.mask_tokens(torch.tensor([[1, 7, 8, 2]]), tokenizer)
        tensor([[1, 9, 9, 2]])
    """
    return _replaced(ids, tokenizer, "mask")


def unknown_tokens(ids: Tensor, tokenizer: Any) -> Tensor:
    """Returns the ids with the token for unknown words in the place of words: words, but no word in particular.

    Args:
        ids: token ids, (batch, tokens), of any integer dtype.
        tokenizer: as in `pad_tokens`, with `unk_token_id`.

    Returns:
        (batch, tokens), of the dtype of `ids`.

    Raises:
        InputTypeError, ArgumentError: as in `pad_tokens`.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3, which asks for a baseline without information.

    Example:
        >>> from types import SimpleNamespace
        >>> tokenizer = SimpleNamespace(unk_token_id=3, all_special_ids=[1, 2, 3])
        >>> igfast.baselines.unknown_tokens(torch.tensor([[1, 7, 8, 2]]), tokenizer)
        tensor([[1, 3, 3, 2]])
    """
    return _replaced(ids, tokenizer, "unk")


def zero_embeddings(ids: Tensor) -> AtLayer:
    """Returns the baseline of zero embeddings, for every token, special ones too. For models without a neutral token.

    No token need have such an embedding, so a model may do anything there: look at the explanation's
    `baseline_predictions`. Only `igfast.LayerIntegratedGradients` of the embedding layer takes this baseline.

    Args:
        ids: token ids, (batch, tokens), of any integer dtype.

    Returns:
        An `AtLayer` with the value 0.

    Raises:
        InputTypeError: `ids` is not an integer tensor.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 6.4.

    Example:
        >>> igfast.baselines.zero_embeddings(torch.tensor([[1, 7, 8, 2]]))
        AtLayer(value=0.0)
    """
    _check_ids(ids)
    return AtLayer(0.0)


def _check_ids(ids: object) -> None:
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
        raise InputTypeError(f"ids must be an integer tensor of token ids; got {describe(ids)}")


def _replaced(ids: Tensor, tokenizer: Any, kind: str) -> Tensor:
    _check_ids(ids)
    token = special_id(tokenizer, kind)
    words = {getattr(tokenizer, "unk_token_id", None)}  # a word that the tokenizer does not know is a word
    kept = sorted(set(tokenizer.all_special_ids) - words)
    special = torch.tensor(kept, device=ids.device, dtype=ids.dtype)
    return torch.where(torch.isin(ids, special), ids, torch.full_like(ids, token))
