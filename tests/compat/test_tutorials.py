"""Captum's documented uses of each class, as code written for Captum: the same numbers before and after the swap."""

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from captum.attr import (
    InterpretableEmbeddingBase,
    LLMGradientAttribution,
    NoiseTunnel,
    TextTokenInput,
    TokenReferenceBase,
    configure_interpretable_embedding_layer,
    remove_interpretable_embedding_layer,
    visualization,
)
from torch import nn

import igfast
from tests.oracle import relative_difference


def before_and_after(script):
    """What a script returns with Captum's classes and with igfast's; it must look them up in captum.attr."""
    results = []
    for swap in (False, True):
        torch.manual_seed(0)
        if swap:
            with igfast.patch_captum():
                results.append(script())
        else:
            results.append(script())
    return results


def assert_same(script, tolerance=1e-6):
    before, after = before_and_after(script)
    assert len(before) == len(after)
    for wanted, got in zip(before, after, strict=True):
        assert relative_difference(got.detach().double(), wanted.detach().double()) <= tolerance


class CifarNet(nn.Module):
    """The network of the CIFAR tutorial: pools, in-place free relus, three dense layers."""

    def __init__(self):
        super().__init__()
        self.conv1, self.pool1, self.pool2 = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2), nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)
        self.relu1, self.relu2, self.relu3, self.relu4 = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x))).view(-1, 400)
        return self.fc3(self.relu4(self.fc2(self.relu3(self.fc1(x)))))


def test_cifar():
    def script():
        net = CifarNet().double().eval()
        images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
        image = images[2].unsqueeze(0).requires_grad_()
        ig = captum.attr.IntegratedGradients(net)
        net.zero_grad()
        attributions, delta = ig.attribute(image, target=3, baselines=image * 0, return_convergence_delta=True)
        tunnel = NoiseTunnel(ig)
        smooth = tunnel.attribute(
            image, baselines=image * 0, target=3, nt_type="smoothgrad_sq", nt_samples=4, stdevs=0.2
        )
        layer = captum.attr.LayerIntegratedGradients(net, net.conv2).attribute(images, target=torch.arange(4))
        neuron = captum.attr.NeuronIntegratedGradients(net, net.conv1).attribute(images, (2, 3, 4))
        figure, _ = visualization.visualize_image_attr(
            attributions[0].detach().permute(1, 2, 0).numpy(), use_pyplot=False, sign="all"
        )
        assert figure is not None
        return attributions, delta + 1, smooth, layer, neuron

    assert_same(script)


def test_tabular():
    class Titanic(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear1, self.linear2, self.linear3 = nn.Linear(12, 12), nn.Linear(12, 8), nn.Linear(8, 2)
            self.sigmoid1, self.sigmoid2, self.softmax = nn.Sigmoid(), nn.Sigmoid(), nn.Softmax(dim=1)

        def forward(self, x):
            return self.softmax(self.linear3(self.sigmoid2(self.linear2(self.sigmoid1(self.linear1(x))))))

    def script():
        net, passengers = Titanic().double(), torch.randn(50, 12, dtype=torch.float64)
        passengers.requires_grad_()
        ig = captum.attr.IntegratedGradients(net)
        attributions, delta = ig.attribute(passengers, target=1, return_convergence_delta=True)
        layer = captum.attr.LayerIntegratedGradients(net, net.sigmoid1)
        conductance = layer.attribute(passengers, target=1, attribute_to_layer_input=True)
        neuron = captum.attr.NeuronIntegratedGradients(net, net.sigmoid1).attribute(passengers, neuron_selector=5)
        return attributions, delta + 1, conductance, neuron

    assert_same(script)


def bert_for_questions():
    import transformers as tf

    config = tf.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return tf.BertForQuestionAnswering(config).double().eval()


@pytest.mark.filterwarnings("ignore:Multiple layers provided")
def test_bert_question_answering():
    def script():
        model = bert_for_questions()

        def predict(inputs, token_type_ids=None, position_ids=None, attention_mask=None):
            output = model(
                inputs, token_type_ids=token_type_ids, position_ids=position_ids, attention_mask=attention_mask
            )
            return output.start_logits, output.end_logits

        def squad_pos_forward_func(inputs, token_type_ids, position_ids, attention_mask, position=0):
            return predict(inputs, token_type_ids, position_ids, attention_mask)[position].max(1).values

        ids = torch.tensor([[2, 17, 9, 33, 3, 8, 41, 12, 5, 3]])
        reference = torch.tensor([[2, 0, 0, 0, 3, 0, 0, 0, 0, 3]])
        token_types = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, 1]])
        positions, mask = torch.arange(10).unsqueeze(0), torch.ones_like(ids)
        results = []
        for position in (0, 1):
            lig = captum.attr.LayerIntegratedGradients(squad_pos_forward_func, model.bert.embeddings)
            attributions, delta = lig.attribute(
                inputs=ids,
                baselines=reference,
                additional_forward_args=(token_types, positions, mask, position),
                return_convergence_delta=True,
            )
            results += [attributions, delta + 1]
        # Several embeddings at once, each with a baseline of its own, as the second half of the tutorial has it.
        lig = captum.attr.LayerIntegratedGradients(
            squad_pos_forward_func,
            [model.bert.embeddings.word_embeddings, model.bert.embeddings.token_type_embeddings],
        )
        results += lig.attribute(
            inputs=(ids, token_types),
            baselines=(reference, torch.zeros_like(token_types)),
            additional_forward_args=(positions, mask, 0),
        )
        return results

    assert_same(script)


class SentimentCnn(nn.Module):
    """The network of the IMDB tutorial: convolutions of several widths over embeddings."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 10)
        self.convs = nn.ModuleList([nn.Conv2d(1, 7, (width, 10)) for width in (3, 4, 5)])
        self.fc = nn.Linear(21, 1)

    def forward(self, text):
        embedded = self.embedding(text).unsqueeze(1)
        pooled = [F.relu(conv(embedded)).squeeze(3).max(2).values for conv in self.convs]
        return torch.sigmoid(self.fc(torch.cat(pooled, 1)))


def test_imdb():
    def script():
        model = SentimentCnn().double().eval()
        reference = TokenReferenceBase(reference_token_idx=1).generate_reference(12, device="cpu").unsqueeze(0)
        text = torch.randint(2, 50, (1, 12))
        lig = captum.attr.LayerIntegratedGradients(model, model.embedding)
        attributions, delta = lig.attribute(text, reference, n_steps=100, return_convergence_delta=True)
        scores = attributions.sum(2).squeeze(0)
        record = visualization.VisualizationDataRecord(
            scores, 0.9, "pos", "pos", "pos", scores.sum(), [str(t) for t in text[0].tolist()], delta
        )
        assert "<mark" in visualization.format_word_importances(record.raw_input_ids, scores.tolist())
        return attributions, delta + 1

    assert_same(script)


@pytest.mark.filterwarnings("ignore:In order to make embedding layers more interpretable")
def test_interpretable_embeddings():
    def script():
        model = SentimentCnn().double().eval()
        text = torch.randint(2, 50, (3, 12))
        layer = configure_interpretable_embedding_layer(model, "embedding")
        assert isinstance(model.embedding, InterpretableEmbeddingBase)
        embedded = layer.indices_to_embeddings(text)
        attributions = captum.attr.IntegratedGradients(model).attribute(embedded, target=0, n_steps=20)
        remove_interpretable_embedding_layer(model, layer)
        return (attributions,)

    assert_same(script)


class Tokenizer:
    """As much of a Hugging Face tokenizer as LLM attribution asks for: every word is a token."""

    def __init__(self):
        self.words = ["<s>", "a", "cat", "sat", "on", "the", "mat"]

    def encode(self, text, return_tensors=None, add_special_tokens=True):
        ids = [self.words.index(word) for word in text.split()]
        return torch.tensor([ids]) if return_tensors == "pt" else ids

    def __call__(self, text, **options):
        offsets, start = [], 0
        for word in text.split():
            offsets.append((start, start + len(word)))
            start += len(word) + 1
        return {"input_ids": self.encode(text), "offset_mapping": offsets}

    def decode(self, ids):
        return " ".join(self.words[int(i)] for i in torch.as_tensor(ids).flatten())

    def convert_ids_to_tokens(self, ids):
        return [self.words[int(i)] for i in torch.as_tensor(ids).flatten()]

    def convert_tokens_to_ids(self, tokens):
        return [self.words.index(t) for t in tokens] if isinstance(tokens, list) else self.words.index(tokens)


@pytest.mark.filterwarnings("ignore:the baseline is id 0")
def test_llm_gradient_attribution():
    import transformers as tf

    def script():
        config = tf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=7, bos_token_id=0, eos_token_id=0)
        model = tf.GPT2LMHeadModel(config).double().eval()
        tokenizer = Tokenizer()
        lig = captum.attr.LayerIntegratedGradients(model, model.transformer.wte)
        result = LLMGradientAttribution(lig, tokenizer).attribute(
            TextTokenInput("a cat sat", tokenizer), target="on the mat", n_steps=12
        )
        return result.seq_attr, result.token_attr

    assert_same(script)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("kind", ["traced", "scripted", "compiled", "data parallel"])
def test_other_kinds_of_models(kind):
    def script():
        net = CifarNet().double().eval()
        images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
        wrapped = {
            "traced": lambda: torch.jit.trace(net, images),
            "scripted": lambda: torch.jit.script(net),
            "compiled": lambda: torch.compile(net, backend="eager"),
            "data parallel": lambda: nn.DataParallel(net),
        }[kind]()
        return (captum.attr.IntegratedGradients(wrapped).attribute(images, target=1, n_steps=5),)

    assert_same(script)
