"""Baselines of token ids keep special tokens and replace words."""

from types import SimpleNamespace

import pytest
import torch

import igfast
from igfast import baselines

TOKENIZER = SimpleNamespace(pad_token_id=0, mask_token_id=5, unk_token_id=None, all_special_ids=[0, 1, 2, 5])


@pytest.mark.parametrize(("make", "token"), [(baselines.pad_tokens, 0), (baselines.mask_tokens, 5)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_words_are_replaced(make, token, dtype):
    ids = torch.tensor([[1, 7, 8, 2], [1, 9, 2, 0]], dtype=dtype)
    made = make(ids, TOKENIZER)
    assert made.tolist() == [[1, token, token, 2], [1, token, 2, 0]]
    assert made.dtype == dtype
    assert ids.tolist() == [[1, 7, 8, 2], [1, 9, 2, 0]]


def test_missing_token_is_named_with_those_that_exist():
    with pytest.raises(igfast.ArgumentError, match=r"no unk_token_id; it has pad, mask"):
        baselines.unknown_tokens(torch.tensor([[1, 2]]), TOKENIZER)


def test_unknown_words_are_words():
    tokenizer = SimpleNamespace(pad_token_id=0, unk_token_id=3, all_special_ids=[0, 1, 2, 3])
    assert baselines.pad_tokens(torch.tensor([[1, 3, 8, 2]]), tokenizer).tolist() == [[1, 0, 0, 2]]
    assert baselines.unknown_tokens(torch.tensor([[1, 7, 8, 2]]), tokenizer).tolist() == [[1, 3, 3, 2]]


@pytest.mark.parametrize("ids", [torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), [[1, 2]]])
def test_other_than_ids(ids):
    with pytest.raises(igfast.InputTypeError, match="ids must be an integer tensor of token ids"):
        baselines.pad_tokens(ids, TOKENIZER)
    with pytest.raises(igfast.InputTypeError, match="ids must be an integer tensor of token ids"):
        baselines.zero_embeddings(ids)
