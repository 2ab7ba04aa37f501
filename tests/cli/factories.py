"""Small models for the commands' tests."""

import torch
from torch import nn

calls = 0


class Network(nn.Sequential):
    """A network for images of 16 by 16 pixels."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(784, 5))


def network():
    return Network()


def table():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def fails():
    raise RuntimeError("no weights here")


class Tokenizer:
    """One id for each letter, with Hugging Face's interface."""

    pad_token_id, mask_token_id, unk_token_id = 0, 1, None
    all_special_ids = (0, 1, 2, 3)

    def __call__(self, text, return_tensors, truncation):
        ids = torch.tensor([[2, *(ord(c) % 40 + 4 for c in text), 3]])
        return Encoded(input_ids=ids, attention_mask=torch.ones_like(ids))

    def convert_ids_to_tokens(self, ids):
        return ["[CLS]", *(chr(96 + i % 26) for i in ids[1:-1]), "[SEP]"]


class Encoded(dict):
    def to(self, device):
        return self


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(44, 8), nn.Linear(8, 3)

    def forward(self, ids, attention_mask):
        mask = attention_mask.unsqueeze(2).float()
        return self.head((self.embedding(ids).tanh() * mask).sum(1) / mask.sum(1))


def text():
    return Classifier(), Tokenizer()
