"""Reads where the paths of a prompt's tokens begin: at other tokens, named or given, or at values of the layer."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import TextTokenInput
from torch import Tensor

from igfast.errors import ArgumentError, ArgumentTypeError, warn
from igfast.request.inputs import describe
from igfast.request.model_inputs import AtLayer, parse_model_inputs
from igfast.request.special_tokens import special_id, special_ids

_NAMES = ("pad", "bos", "eos", "unk", "mask")
_warned: set[str] = set()  # tokens that the first id of a tokenizer stands for


@dataclass(frozen=True)
class TokenBaseline:
    """The baseline of a prompt.

    Attributes:
        ids: the prompt's ids at the baseline, (1, tokens).
        filler: the id that stands for an absent token.
        at_layer: instead, the layer's values; None where the ids hold.
    """

    ids: Tensor
    filler: int
    at_layer: AtLayer | None = None


def parse_token_baseline(
    inp: TextTokenInput, baselines: Any, tokenizer: Any, device: torch.device, warns: bool = True
) -> TokenBaseline:
    """Returns the baseline of a prompt.

    Args:
        inp: the prompt.
        baselines: None or 0, where all tokens are replaced; a tensor (1, n_itp_features), where 1 keeps a token and 0
            replaces it; the name of a special token; a token; "zero" or an `AtLayer` for values of the layer.
        tokenizer: of Hugging Face's interface.
        device: of the ids.
        warns: whether to warn of id 0 where that is a word.

    Raises:
        ArgumentError: the tokenizer has no such token.
        BaselineError, ArgumentTypeError: as in `igfast.LayerIntegratedGradients.attribute`.
    """
    present = inp.to_tensor().to(device)
    if isinstance(baselines, str) and baselines == "zero":
        baselines = AtLayer(0.0)
    if isinstance(baselines, AtLayer):
        return TokenBaseline(inp.to_model_input(torch.zeros_like(present)).to(device), inp.baselines, baselines)
    if isinstance(baselines, str):
        inp = copy.copy(inp)
        inp.baselines = _id_of(baselines, tokenizer)
        baselines = None
    elif warns and isinstance(inp.baselines, int) and inp.baselines == 0:
        _warn_of_first_token(tokenizer)
    if baselines is not None and not isinstance(baselines, (bool, int, float, Tensor)):
        raise ArgumentTypeError(
            f"baselines must be a name, a token, a number, a tensor or an AtLayer; got {describe(baselines)}"
        )
    if isinstance(baselines, Tensor):
        parse_model_inputs(present, torch.zeros_like(baselines, dtype=present.dtype))  # checks the shape
        if bool(((baselines != 0) & (baselines != 1)).any()):
            warn(
                "baselines holds other numbers than 0 and 1, and is taken as Captum does: tokens at 1 are kept, and "
                "all others replaced. The ids of a baseline are not taken here; name its token, or pass 0 and 1"
            )
        kept = (baselines == 1).to(present).expand_as(present)
    else:
        kept = torch.full_like(present, int(baselines == 1))
    return TokenBaseline(inp.to_model_input(kept).to(device), inp.baselines)


def _id_of(name: str, tokenizer: Any) -> int:
    """Returns the id of a special token by its name, or of a token of the vocabulary."""
    if name in _NAMES:
        return special_id(tokenizer, name)
    vocabulary = tokenizer.get_vocab()
    if name not in vocabulary:
        raise ArgumentError(
            f'baselines must be one of {", ".join(_NAMES)}, "zero" or a token of the vocabulary; got {name!r}'
        )
    return int(vocabulary[name])


def _warn_of_first_token(tokenizer: Any) -> None:
    if 0 in special_ids(tokenizer).values():
        return
    token = tokenizer.decode([0])
    if token not in _warned:
        _warned.add(token)
        warn(
            f"the baseline is id 0, which is {token!r} in this tokenizer: Captum's default, whatever it means. Name "
            'another token, as in TextTokenInput(..., baselines=...) or attribute(..., baselines="eos")'
        )
