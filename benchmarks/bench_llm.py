"""Token attributions of language models: igfast in one pass against Captum's loop over the tokens of an answer.

SmolLM2-135M for times and errors, a random Llama of 12 layers for memory. Writes results/llm.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import captum.attr
import torch
import transformers
from captum.attr import TextTokenInput

import igfast
from benchmarks import harness
from igfast.cli.language_model import load_language_model
from igfast.memory.peak import peak_memory
from igfast.memory.recovery import give_back_freed_blocks

N_STEPS = 50
PROMPT = (
    "Answer with one word and nothing else, as short as you can, please. The Eiffel Tower is a building in the city of"
)
ANSWERS = {
    6: " Paris, in France, which",
    25: " Paris, in France, which is the capital of the country and one of the most visited places in the world, I "
    "think",
}
BASELINE = "<|endoftext|>"
PARTS = ("short answer", "long answer", "memory", "bfloat16")
LONG = {"tokens": 512, "layers": 12, "hidden": 768}
BUDGET = "80MiB"  # in which one path point does not fit without recomputation
LONG_STEPS = 10
HALF_STEPS = 8  # rounding is as large with more of them, and processors without bfloat16 are slow


def _explainers(module: Any, model: Any, layer: Any, tokenizer: Any, **options: Any) -> Any:
    explainer = module.LayerIntegratedGradients(model, layer, **options)
    return module.LLMGradientAttribution(explainer, tokenizer)


def smollm(n_tokens: int, n_steps: int, rounds: int) -> list[dict[str, Any]]:
    """Times and errors for an answer of so many tokens."""
    model, tokenizer = load_language_model()
    layer: Any = model.model.embed_tokens
    inp = TextTokenInput(PROMPT, tokenizer, baselines=BASELINE)
    answer = torch.tensor(tokenizer(ANSWERS[n_tokens], add_special_tokens=False).input_ids)[:n_tokens]
    if len(answer) != n_tokens:
        raise ValueError(f"the answer has {len(answer)} tokens, not {n_tokens}")
    ours, theirs = (_explainers(module, model, layer, tokenizer) for module in (igfast, captum.attr))
    found: dict[str, Any] = {}

    def keep(label: str, call: Callable[[], Any]) -> Callable[[], None]:
        return lambda: found.update({label: call()})

    calls = {
        "igfast, each token": keep("each", lambda: ours.attribute(inp, answer, n_steps=n_steps)),
        "captum": keep("captum", lambda: theirs.attribute(inp, answer, n_steps=n_steps)),
    }
    whole = keep("whole", lambda: ours.attribute(inp, answer, n_steps=n_steps, per_token=False))
    own, seconds, ratios = harness.beside(whole, calls, rounds, in_all_rounds=calls)
    wanted = found["captum"]
    errors = {
        "igfast, whole answer": _difference(found["whole"].seq_attr, wanted.seq_attr),
        "igfast, each token": _difference(found["each"].token_attr, wanted.token_attr),
        "captum": 0.0,
    }
    seconds["igfast, whole answer"], ratios["igfast, whole answer"] = own, 1.0
    case = f"SmolLM2-135M, {inp.inp_tensor.shape[1]} + {n_tokens} tokens, {n_steps} steps, float32"
    return [
        {
            "benchmark": "llm",
            "case": case,
            "n_tokens": n_tokens,
            "provider": label,
            "seconds": harness.percentiles(seconds[label]),
            "time_ratio": ratios[label],
            "rounds": len(seconds[label]),
            "difference_from_captum": errors[label],
        }
        for label in errors
    ]


def half_precision() -> dict[str, Any]:
    """How far bfloat16 is from float32 with the same steps."""
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        model, tokenizer = load_language_model(dtype)
        layer: Any = model.model.embed_tokens
        inp = TextTokenInput(PROMPT, tokenizer, baselines=BASELINE)
        explainer = _explainers(igfast, model, layer, tokenizer)
        results[dtype] = explainer.attribute(inp, ANSWERS[6], n_steps=HALF_STEPS)
    exact, half = results[torch.float32], results[torch.bfloat16]
    return {
        "benchmark": "llm",
        "case": f"SmolLM2-135M, 6 tokens, {HALF_STEPS} steps, bfloat16 against float32",
        "provider": "igfast, each token",
        "error_l2": float((half.token_attr - exact.token_attr).norm() / exact.token_attr.norm()),
        "error_of_whole_l2": float((half.seq_attr - exact.seq_attr).norm() / exact.seq_attr.norm()),
    }


LONG_LABELS = ("captum, internal_batch_size=1", "igfast, internal_batch_size=1", f'igfast, memory_budget="{BUDGET}"')


def long_call(label: str) -> Callable[..., object]:
    """A label's attribution of a random Llama to a prompt, as a function of the steps and the prompt's tokens."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=LONG["hidden"],
        intermediate_size=7 * LONG["hidden"] // 2,
        num_hidden_layers=LONG["layers"],
        num_attention_heads=12,
        num_key_value_heads=3,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    _, tokenizer = load_language_model()
    answer = torch.arange(10, 16)
    library, _, option = label.partition(", ")
    module = igfast if library == "igfast" else captum.attr
    budget = {"memory_budget": BUDGET} if "budget" in option else {}
    explainer = _explainers(module, model, model.model.embed_tokens, tokenizer, **budget)
    options: dict[str, Any] = {} if budget else {"internal_batch_size": 1}
    if module is igfast:
        options["per_token"] = False

    def call(n_steps: int, n_tokens: int = LONG["tokens"]) -> object:
        torch.manual_seed(0)
        inp = TextTokenInput(PROMPT, tokenizer, baselines=1)
        inp.inp_tensor = inp.itp_tensor = torch.randint(5, 32000, (1, n_tokens))
        inp.values = [str(i) for i in range(n_tokens)]
        return explainer.attribute(inp, answer, n_steps=n_steps, **options)

    return call


def long_prompt(rounds: int) -> list[dict[str, Any]]:
    """Peak memory in processes of their own, and the time that recomputation takes."""
    calls = {label: long_call(label) for label in LONG_LABELS[1:]}
    for call in calls.values():  # finds out what fits
        call(1)
    plain, recomputed = (lambda call=call: call(LONG_STEPS) for call in calls.values())
    own, seconds, ratios = harness.beside(plain, {LONG_LABELS[2]: recomputed}, rounds)
    seconds[LONG_LABELS[1]], ratios[LONG_LABELS[1]] = own, 1.0
    case = "Llama, {layers} layers of {hidden}, {tokens} + 6 tokens, whole answer, float32".format(**LONG)
    records = []
    for label in LONG_LABELS:
        record = {"benchmark": "llm", "case": case, "provider": label}
        record |= harness.in_own_process("benchmarks.bench_llm", "--peak-of", label)
        if label in seconds:
            record |= {"seconds": harness.percentiles(seconds[label]), "time_ratio": ratios[label]}
        records.append(record)
    return records


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def main() -> None:
    """Measures all cases and writes the records, or one case's peak for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak-of", choices=LONG_LABELS)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n-steps", type=int, default=N_STEPS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of attributions that are not converged, and of small budgets
    if options.peak_of:
        call = long_call(options.peak_of)
        call(2, 8)  # loads the code of all libraries
        give_back_freed_blocks()
        with peak_memory() as memory:
            call(2)
        print(json.dumps({"peak_bytes": memory.over_before}))
        return
    began = time.perf_counter()
    records = []
    for part in options.parts:
        if part == "short answer":
            records += smollm(6, options.n_steps, options.rounds)
        elif part == "long answer":
            records += smollm(25, options.n_steps, 1)
        elif part == "memory":
            records += long_prompt(options.rounds)
        else:
            records.append(half_precision())
    print(harness.update("llm", records), f"{time.perf_counter() - began:.0f} s")
    for record in records:
        shown = {name: record[name] for name in ("time_ratio", "peak_bytes", "error_l2") if name in record}
        print(f"{record['case']:<72} {record['provider']:<32} {shown}")


if __name__ == "__main__":
    main()
