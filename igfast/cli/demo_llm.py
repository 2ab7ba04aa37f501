"""`python -m igfast demo llm`: which tokens of a prompt speak for each token of a language model's answer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr
from captum.attr import TextTokenInput
from torch import nn

import igfast
from igfast import viz
from igfast.cli.language_model import load_language_model
from igfast.memory.peak import peak_memory

PROMPT = "Dante was born in Florence, which lies in Italy. The capital of France is"
ANSWER = " Paris. The capital of Italy is Rome"
BASELINE = "<|endoftext|>"
_TOLERANCE = 0.15
_PRECISELY = {"tolerance": _TOLERANCE, "max_steps": 500}
_CONTRAST = PROMPT, " Paris", " Rome"


def run_llm_demo(out: Path, n_steps: int) -> None:
    """Attributes a small language model's answer to the tokens of its prompt, with igfast and with Captum.

    Prints tokens in colour, and writes `llm.png`, a matrix, and `llm.html` into `out`.

    Args:
        out: folder, created if missing.
        n_steps: points along the path, where igfast and Captum are compared.
    """
    from rich.console import Console

    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_language_model()
    layer = model.get_submodule("model.embed_tokens")
    inp = TextTokenInput(PROMPT, tokenizer, baselines=BASELINE)
    ours = _explainer(igfast, model, layer, tokenizer)
    theirs = _explainer(captum.attr, model, layer, tokenizer)
    print(f"SmolLM2-135M goes on: {PROMPT!r}, {ANSWER!r}. Attributing that to the prompt, {n_steps} steps.\n")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", igfast.ConvergenceWarning)  # the same steps for both; the pictures have more
        _timed("igfast, whole answer", lambda: ours.attribute(inp, ANSWER, n_steps=n_steps, per_token=False))
        each = _timed("igfast, each token", lambda: ours.attribute(inp, ANSWER, n_steps=n_steps))
        wanted = _timed("Captum, each token", lambda: theirs.attribute(inp, ANSWER, n_steps=n_steps))
    apart = float((each.token_attr - wanted.token_attr).abs().max() / wanted.token_attr.abs().max())
    delta, change = (float(part.norm()) for part in (each.deltas, each.changes))
    print(f"Largest difference: {apart:.0e} of the largest attribution.")
    print(f"But {n_steps} steps are too few: the deltas are {delta:.1f}, of a change of {change:.1f} (L2 norms).\n")

    result, report = _timed(
        f"Tolerance of {_TOLERANCE:.0%}", lambda: ours.attribute(inp, ANSWER, return_report=True, **_PRECISELY)
    )
    print(f"{report}\n")
    whole = viz.tokens_of(result.seq_attr, result.input_tokens, title=f"log-probability of “{ANSWER.strip()}”")
    prompt, answer, foil = _CONTRAST
    contrastive = _explainer(igfast, model, layer, tokenizer, attr_target="logit_diff")
    contrast = contrastive.attribute(
        TextTokenInput(prompt, tokenizer, baselines=BASELINE), answer, foil=foil, **_PRECISELY
    )
    named = f"logit of “{answer.strip()}” less that of “{foil.strip()}”"
    rows = [whole, viz.tokens_of(contrast.seq_attr, contrast.input_tokens, title=named)]
    console = Console(soft_wrap=True)
    for row in rows:
        console.print(viz.text_terminal(row), "\n")
    title = "What each token of the prompt (columns) adds to the log-probability of each token of the answer (rows)"
    viz.save(viz.token_matrix(result, title=title), out / "llm.png")
    page = out / "llm.html"
    page.write_text(viz.text_page(rows), encoding="utf-8")
    print(f"The picture is {out / 'llm.png'}, the page {page}.")


def _explainer(library: Any, model: nn.Module, layer: nn.Module, tokenizer: Any, **options: Any) -> Any:
    method = library.LayerIntegratedGradients(model, layer)
    return library.LLMGradientAttribution(method, tokenizer, **options)


def _timed(label: str, call: Callable[[], Any]) -> Any:
    with peak_memory() as memory:
        began = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - began
    print(f"{label:<22}{seconds:8.1f} s {memory.over_before / 2**20:8.0f} MiB")
    return result
