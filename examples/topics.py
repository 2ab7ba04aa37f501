"""Why a text was classified wrongly, by words that pull each way.

The texts are the docstrings of the standard library, which every Python has, in four topics. An embedding, a
bidirectional LSTM and a linear layer learn to tell them apart. A held-out text that is classified wrongly is explained
for the predicted and for the true topic, from the embedding layer, with the embedding of padding, zero, as the
baseline.

    python -m examples.topics --out folder
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import igfast

TOPICS = {
    "network": ["http.client", "http.server", "urllib.request", "urllib.parse", "socket", "ssl", "smtplib", "ftplib",
                "imaplib", "poplib", "socketserver", "selectors", "xmlrpc.client", "http.cookies", "http.cookiejar"],
    "numbers": ["math", "cmath", "decimal", "fractions", "statistics", "random", "numbers", "datetime", "calendar",
                "_pydecimal", "heapq", "bisect", "colorsys"],
    "files": ["os", "os.path", "pathlib", "shutil", "tempfile", "glob", "zipfile", "tarfile", "gzip", "bz2", "lzma",
              "io", "fileinput", "filecmp", "stat", "mmap", "csv", "pickle"],
    "code": ["ast", "inspect", "dis", "tokenize", "importlib", "importlib.util", "types", "typing", "symtable", "pdb",
             "bdb", "traceback", "unittest", "unittest.mock", "doctest", "trace", "code", "codeop"],
}  # fmt: skip
MOST_WORDS, FEWEST_WORDS, N_EPOCHS = 60, 8, 20
N_STEPS = 1000  # the output jumps near the zero embedding: 50 steps leave a delta larger than the change of the output


def docstrings(module_name: str) -> list[str]:
    """Returns the docstrings of a module's functions, classes and their methods, without doubles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(module_name)
    found: dict[str, None] = {}
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module_name:
            continue
        for owner in (value, *(vars(value).values() if inspect.isclass(value) else ())):
            text = inspect.getdoc(owner) if callable(owner) else None
            if text and len(words_of(text)) >= FEWEST_WORDS:
                found.setdefault(text)
    return list(found)


def words_of(text: str) -> list[str]:
    """Returns the first words of a text, in lower case."""
    return re.findall(r"[a-z]+", text.lower())[:MOST_WORDS]


class Classifier(nn.Module):
    """An embedding, a bidirectional LSTM, and a linear layer on the mean of its states; padding is id 0."""

    def __init__(self, n_words: int, n_topics: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_words, 48, padding_idx=0)
        self.lstm = nn.LSTM(48, 48, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(96, n_topics)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns logits, (batch, topics), of ids and mask, (batch, words)."""
        states, _ = self.lstm(self.dropout(self.embedding(ids)))
        mean = (states * mask.unsqueeze(2)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        logits: Tensor = self.head(self.dropout(mean))
        return logits


def load_texts() -> tuple[list[str], list[int]]:
    """Returns the texts and their topics, without texts that several topics share."""
    topics_of: dict[str, set[int]] = {}
    for topic, modules in enumerate(TOPICS.values()):
        for module in modules:
            for text in docstrings(module):
                topics_of.setdefault(text, set()).add(topic)
    pairs = [(text, topics.pop()) for text, topics in topics_of.items() if len(topics) == 1]
    return [text for text, _ in pairs], [topic for _, topic in pairs]


def encode(texts: list[str], vocabulary: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Returns ids and mask, (batch, words); unknown words are 1."""
    rows = [torch.tensor([vocabulary.get(word, 1) for word in words_of(text)]) for text in texts]
    ids = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
    return ids, mask


def run(out: Path) -> dict[str, float]:
    """Trains, finds a text that is classified wrongly, explains it twice, and returns the figures."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    texts, topics = load_texts()
    order = torch.randperm(len(texts)).tolist()
    held_out, trained = order[: len(order) // 5], order[len(order) // 5 :]
    counts = Counter(word for i in trained for word in words_of(texts[i]))
    vocabulary = {word: i + 2 for i, (word, n) in enumerate(counts.most_common()) if n > 1}
    model = train(texts, torch.tensor(topics), trained, vocabulary)
    ids, mask = encode([texts[i] for i in held_out], vocabulary)
    truth = torch.tensor([topics[i] for i in held_out])
    with torch.no_grad():
        logits = model(ids, mask)
    predicted = logits.argmax(dim=1)
    wrong = (predicted != truth).nonzero().squeeze(1).tolist()
    row = max(wrong, key=lambda i: min(float(mask[i].sum()), 25))  # one with enough words to look at
    words = words_of(texts[held_out[row]])
    explainer = igfast.LayerIntegratedGradients(model, model.embedding)
    names, rows, explanations = list(TOPICS), [], []
    for kind, topic in (("predicted", int(predicted[row])), ("true", int(truth[row]))):
        one = slice(row, row + 1), slice(0, len(words))
        explanation = explainer.explain(ids[one], 0, topic, mask[one], n_steps=N_STEPS, feature_names=[words])
        rows.append(igfast.viz.tokens_of(explanation, title=f"{kind} topic: {names[topic]}"))
        explanations.append(explanation)
    largest = max(float((e.predictions - e.baseline_predictions).abs()) for e in explanations)
    (out / "topics.html").write_text(igfast.viz.text_page(rows), encoding="utf-8")
    igfast.viz.save(igfast.viz.text_figure(rows), out / "topics.png")
    for tokens in rows:
        strongest = sorted(zip(tokens.scores, tokens.words, strict=True), reverse=True)[:3]
        print(f"{tokens.title}: {', '.join(f'{word} {score:+.2f}' for score, word in strongest)}")
    return {
        "texts": len(texts),
        "accuracy": float((predicted == truth).float().mean()),
        "largest delta": max(float(e.deltas.abs()) for e in explanations) / largest,
    }


def train(texts: list[str], topics: Tensor, rows: list[int], vocabulary: dict[str, int]) -> Classifier:
    """Returns a classifier that was fitted to some of the texts."""
    model = Classifier(len(vocabulary) + 2, len(TOPICS))
    ids, mask = encode([texts[i] for i in rows], vocabulary)
    labels = topics[rows]
    weights = 1 / torch.bincount(labels).float()
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(N_EPOCHS):
        for batch in torch.randperm(len(rows)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(ids[batch], mask[batch]), labels[batch], weights).backward()
            optimiser.step()
    return model.eval()


def main() -> None:
    """Runs the walk-through, and fails if its claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("igfast-examples"))
    figures = run(parser.parse_args().out)
    print("\n".join(f"{name}: {value:.4g}" for name, value in figures.items()))
    assert figures["accuracy"] > 0.8
    assert figures["largest delta"] < 0.05


if __name__ == "__main__":
    main()
