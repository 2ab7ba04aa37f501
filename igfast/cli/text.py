"""`igfast text`: explains sentences through a model's embedding layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import igfast
from igfast.cli.models import check_target, load_factory, prepared, target_of
from igfast.errors import ArgumentError, CommandError, InputError, warn
from igfast.explanation import Explanation
from igfast.packages import needed


class _Logits(nn.Module):
    """A transformer as a function of ids and mask that returns logits, (batch, classes)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the logits, or the output itself if that is a tensor."""
        output = self.model(ids, attention_mask=mask)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits


def load_text_model(name: str, weights: Path | None, device: str) -> tuple[nn.Module, Any]:
    """Returns a model from (ids, mask) to (batch, classes), and its tokenizer.

    Args:
        name: package.module:factory of a function that returns a model and a tokenizer of Hugging Face's interfaces, or
            a folder or name that transformers loads a sequence classifier from.
        weights: as in `load_model`.
        device: as in `load_model`.

    Raises:
        CommandError: there is no such model.
        MissingPackageError: transformers is not installed.
    """
    if ":" in name:
        made = load_factory(name)
        if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module):
            raise CommandError(f"--model {name}: the factory must return a model and a tokenizer")
        model, tokenizer = made
    else:
        transformers = needed("transformers", "to load models by name", "demo")
        try:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(name)
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise CommandError(f"--model {name}: {error}") from error
    return _Logits(prepared(model, weights, device)), tokenizer


def check_text_options(target: str, baseline: str, n_steps: int) -> None:
    """Raises CommandError for options of texts that are none of their values."""
    check_target(target)
    if baseline not in BASELINES:
        raise CommandError(f"--baseline must be one of {', '.join(BASELINES)}; got {baseline!r}")
    if n_steps < 1:
        raise CommandError(f"--steps must be at least 1; got {n_steps}")


def explain_text(
    model: nn.Module, tokenizer: Any, text: str, *, target: str, baseline: str, n_steps: int, device: str
) -> Explanation:
    """Returns the explanation of a text, with its tokens as feature names; raises InputError if it has no tokens."""
    encoded = tokenizer(text, return_tensors="pt", truncation=True).to(device)
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    whole = tokenizer(text, return_tensors="pt", truncation=False)["input_ids"].shape[1]
    if whole > ids.shape[1]:
        warn(f"the model takes {ids.shape[1]} tokens, and the text has {whole}: its end is not explained")
    if ids.shape[1] == 0:
        raise InputError(f"{text!r} has no tokens")
    with torch.no_grad():
        picked = target_of(target, model(ids.clone(), mask.clone()))  # some models work in place
    explainer = igfast.LayerIntegratedGradients(model, _embedding(model))
    tokens = tokenizer.convert_ids_to_tokens(ids[0].tolist())
    try:
        start = BASELINES[baseline](ids, tokenizer)
    except ArgumentError as error:
        raise CommandError(f"--baseline {baseline}: {error}") from error
    config: Any = getattr(model.get_submodule("model"), "config", None)
    names = getattr(config, "id2label", None) or None
    return explainer.explain(ids, start, picked, mask, n_steps, feature_names=[tokens], target_names=names)


def sentences_of(texts: Sequence[str], file: Path | None) -> list[str]:
    """Returns the texts of a command: its arguments, and the lines of a file; raises CommandError if there are none."""
    lines = list(texts)
    if file is not None:
        try:
            lines += [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"--file {file}: {error}") from error
    if not lines:
        raise CommandError("there is no text: pass one in quotes, or --file with one on each line")
    return lines


def _embedding(model: nn.Module) -> nn.Module:
    inner: Any = model.get_submodule("model")
    if getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        raise CommandError(
            "--model: the model's encoder and its decoder each embed the text. In Python, attribute both layers: "
            "igfast.LayerIntegratedGradients(model, [encoder.embed_tokens, decoder.embed_tokens])"
        )
    if hasattr(inner, "get_input_embeddings"):
        layer: nn.Module = inner.get_input_embeddings()
        return layer
    for part in model.modules():
        if isinstance(part, nn.Embedding):
            return part
    raise CommandError("--model: the model has no embedding layer")


BASELINES: dict[str, Callable[[Tensor, Any], Any]] = {
    "pad": igfast.baselines.pad_tokens,
    "mask": igfast.baselines.mask_tokens,
    "unknown": igfast.baselines.unknown_tokens,
    "zero": lambda ids, _: igfast.baselines.zero_embeddings(ids),
}
"""What --baseline may be for texts."""
