"""Networks with layers worth attributing, float64, and what a naive loop over a layer's values is."""

import torch
from torch import nn

from tests.models import Logits
from tests.oracle import naive_integrated_gradients


class BiLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(30, 6)
        self.lstm = nn.LSTM(6, 5, bidirectional=True, batch_first=True)
        self.dense = nn.Linear(10, 4)
        self.double().eval()

    def forward(self, ids, mask=None):
        hidden = self.lstm(self.embedding(ids))[0]
        if mask is not None:
            hidden = hidden * mask.unsqueeze(-1)
        return self.dense(hidden.mean(1))


class Pair(nn.Module):
    """Returns a tuple, which `Tuples` takes apart."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 3)

    def forward(self, x, y):
        return torch.tanh(self.left(x)), torch.sigmoid(self.right(y))


class Tuples(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.pair, self.head = nn.Linear(6, 5), Pair(), nn.Linear(7, 4)
        self.double().eval()

    def forward(self, x):
        x = torch.relu(self.stem(x))
        a, b = self.pair(x, x * 2)
        return self.head(torch.cat([a, b], 1)) ** 2


class TwoEmbeddings(nn.Module):
    """Token and type ids, both embedded, with a mask and a scale."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.types, self.head = nn.Embedding(30, 6), nn.Embedding(2, 6), nn.Linear(6, 4)
        self.double().eval()

    def forward(self, ids, type_ids, mask=None, scale=1.0):
        x = torch.tanh(self.words(ids) * self.types(type_ids))
        if mask is not None:
            x = x * mask.unsqueeze(-1)
        return self.head(x.mean(1)) * scale


def _classifier(name):
    import transformers as tf

    torch.manual_seed(0)
    sizes = {"num_labels": 4, "vocab_size": 50}
    if name == "bert":
        config = tf.BertConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **sizes
        )
        return Logits(tf.BertForSequenceClassification(config)).double().eval()
    config = tf.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, **sizes)
    return Logits(tf.DistilBertForSequenceClassification(config)).double().eval()


def bert():
    model = _classifier("bert")
    return model, model.model.get_input_embeddings()


def distilbert():
    model = _classifier("distilbert")
    return model, model.model.get_input_embeddings()


def naive(rest, at_input, at_baseline, n_steps, method="gausslegendre"):
    """The naive loop over `rest`, a function of the layer's values."""
    return naive_integrated_gradients(rest, at_input, at_baseline, n_steps, method)


def values_of(network, layer, *args, at_input=False):
    """What a layer gives out (or takes in), as a tuple."""
    seen = []

    def hook(module, inputs, output):
        seen.append(inputs if at_input else output)

    handle = layer.register_forward_hook(hook)
    with torch.no_grad():
        network(*args)
    handle.remove()
    (value,) = seen
    return value if isinstance(value, tuple) else (value,)


def from_layer(network, layer, *args, at_input=False):
    """The network as a function of the layer's values, by replacing them in a hook."""

    def rest(*values):
        value = values if at_input or len(values) > 1 else values[0]
        hook = (lambda m, i: value) if at_input else (lambda m, i, o: value)
        handle = layer.register_forward_pre_hook(hook) if at_input else layer.register_forward_hook(hook)
        try:
            return network(*args)
        finally:
            handle.remove()

    return rest
