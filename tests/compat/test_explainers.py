"""Other packages' explainers give the numbers with igfast in Captum's place that they give with Captum."""

import warnings

import pytest
import torch
from torch import nn

import igfast
from tests.oracle import relative_difference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations in these packages are their own business
    from torch_geometric.data import HeteroData
    from torch_geometric.explain import CaptumExplainer, Explainer
    from torch_geometric.nn import GCNConv, HeteroConv, SAGEConv, global_mean_pool
    from transformers import (
        BertConfig,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertTokenizerFast,
    )
    from transformers_interpret import QuestionAnsweringExplainer, SequenceClassificationExplainer

# Captum's nodes and weights are float32; igfast's are exact.
SAME = 1e-6


def both(explain):
    """What a function returns with Captum, and with igfast in its place, which must have been called."""
    with_captum = explain()
    with igfast.patch_captum(), pytest.MonkeyPatch.context() as patch:
        calls = []
        for cls in (igfast.IntegratedGradients, igfast.LayerIntegratedGradients):
            patch.setattr(cls, "__init__", counted(cls.__init__, calls))
        with_igfast = explain()
    assert calls
    return with_captum, with_igfast


def counted(init, calls):
    def count(self, *args, **kwargs):
        calls.append(type(self))
        return init(self, *args, **kwargs)

    return count


# ---------------------------------------------------------------------------------------------- PyTorch Geometric


class Nodes(nn.Module):
    """Two graph convolutions: one row of logits for each node."""

    def __init__(self, features=4, classes=3):
        super().__init__()
        self.first, self.second = GCNConv(features, 8), GCNConv(8, classes)

    def forward(self, x, edge_index):
        return self.second(self.first(x, edge_index).tanh(), edge_index)


class Graphs(Nodes):
    """One row of logits for each graph of a batch."""

    def forward(self, x, edge_index, batch=None):
        return global_mean_pool(super().forward(x, edge_index), batch)


def graph(n_nodes=7, features=4):
    x = torch.randn(n_nodes, features, dtype=torch.float64)
    ring = torch.arange(n_nodes)
    edges = torch.stack([ring, ring.roll(1)])
    return x, torch.cat([edges, edges.flip(0), torch.tensor([[0, 2], [3, 5]])], dim=1)


def explain(model, level, masks, *args, **kwargs):
    explainer = Explainer(
        model.double().eval(),
        algorithm=CaptumExplainer("IntegratedGradients", n_steps=20),
        explanation_type="model",
        model_config={"mode": "multiclass_classification", "task_level": level, "return_type": "raw"},
        **{f"{name}_mask_type": kind for name, kind in masks.items()},
    )
    return explainer(*args, **kwargs)


def assert_same(explanations, masks):
    for name in masks:
        theirs, ours = (explanation.get(f"{name}_mask").detach() for explanation in explanations)
        assert float(theirs.abs().max()) > 0
        assert relative_difference(ours, theirs) < SAME


MASKS = [{"node": "attributes"}, {"edge": "object"}, {"node": "attributes", "edge": "object"}]


@pytest.mark.parametrize("index", [None, 2, torch.tensor([1, 4])], ids=["all", "one", "some"])
@pytest.mark.parametrize("masks", MASKS, ids=lambda masks: " and ".join(masks))
def test_nodes_of_a_graph(masks, index):
    model, (x, edge_index) = Nodes(), graph()
    assert_same(both(lambda: explain(model, "node", masks, x, edge_index, index=index)), masks)


@pytest.mark.parametrize("n_graphs", [1, 2])
@pytest.mark.parametrize("masks", MASKS, ids=lambda masks: " and ".join(masks))
def test_graphs(masks, n_graphs):
    model, (x, edge_index) = Graphs(), graph()
    batch = torch.arange(len(x)) * n_graphs // len(x)
    assert_same(both(lambda: explain(model, "graph", masks, x, edge_index, batch=batch)), masks)


@pytest.mark.parametrize("masks", MASKS, ids=lambda masks: " and ".join(masks))
def test_heterogeneous_graph(masks):
    data = HeteroData()
    data["paper"].x, data["author"].x = torch.randn(6, 4).double(), torch.randn(3, 5).double()
    data["author", "writes", "paper"].edge_index = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 5]])
    data["paper", "by", "author"].edge_index = torch.tensor([[0, 1, 2, 4], [0, 1, 2, 0]])
    data["paper", "cites", "paper"].edge_index = torch.tensor([[0, 1, 2, 4], [1, 2, 3, 0]])

    class Hetero(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = HeteroConv(
                {
                    ("author", "writes", "paper"): SAGEConv((5, 4), 8),
                    ("paper", "by", "author"): SAGEConv((4, 5), 8),
                    ("paper", "cites", "paper"): SAGEConv((4, 4), 8),
                }
            )
            self.head = nn.Linear(8, 3)

        def forward(self, x_dict, edge_index_dict):
            hidden = self.convolution(x_dict, edge_index_dict)
            return self.head(hidden["paper"].tanh() + hidden["author"].mean(dim=0))

    model = Hetero()
    explanations = both(
        lambda: explain(model, "node", masks, data.x_dict, data.edge_index_dict, index=torch.tensor([1, 3]))
    )
    for name in masks:
        for theirs, ours in zip(*(e.collect(f"{name}_mask").values() for e in explanations), strict=True):
            assert relative_difference(ours.detach(), theirs.detach()) < SAME


# ---------------------------------------------------------------------------------------------- transformers-interpret

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "who", "where", "did", "it", "is", "was", "good", "bad"],
]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    return BertTokenizerFast(vocab_file=str(vocabulary))


def words_and_scores(pairs):
    return [word for word, _ in pairs], torch.tensor([score for _, score in pairs])


@pytest.mark.parametrize("embedding_type", [0, 1], ids=["words", "positions"])
@pytest.mark.parametrize("internal_batch_size", [None, 3])
def test_sequence_classification(tokenizer, internal_batch_size, embedding_type):
    model = BertForSequenceClassification(BertConfig(**SIZES, intermediate_size=64, num_labels=3)).double().eval()

    def explain_text():
        explainer = SequenceClassificationExplainer(model, tokenizer)
        pairs = explainer(
            "the cat sat on the mat", embedding_type=embedding_type, internal_batch_size=internal_batch_size, n_steps=20
        )
        return words_and_scores(pairs), explainer.attributions.delta

    ((words, theirs), delta), ((our_words, ours), our_delta) = both(explain_text)
    assert our_words == words
    assert relative_difference(ours, theirs) < SAME
    torch.testing.assert_close(our_delta, delta, rtol=0, atol=1e-6)


def test_question_answering(tokenizer):
    model = BertForQuestionAnswering(BertConfig(**SIZES, intermediate_size=64)).double().eval()

    def explain_answer():
        explainer = QuestionAnsweringExplainer(model, tokenizer)
        answer = explainer("who sat on the mat", "the cat sat on the mat", n_steps=20)
        return [words_and_scores(answer[part]) for part in ("start", "end")]

    for (words, theirs), (our_words, ours) in zip(*both(explain_answer), strict=True):
        assert our_words == words
        assert relative_difference(ours, theirs) < SAME
