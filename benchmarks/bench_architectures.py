"""Compares attributions with Captum's on every architecture of transformers that can be made small.

Each has random weights and two examples. Texts have padding, and are attributed at their embedding layer; images as
they are. igfast chooses its chunks, or takes three path points at a time, and the largest difference from Captum's
numbers counts, over the largest of those. In float64, Captum's rounding of the rule to float32 is all that is left.
Architectures whose kernels take float32 alone are compared in that. Writes results/architectures.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import captum.attr
import torch
from torch import Tensor, nn

import igfast
from benchmarks import harness
from tests.oracle import relative_difference

N_STEPS = 6
SECONDS = 60  # of one architecture
MOST_WEIGHTS = 30_000_000
WITHIN = {torch.float64: 1e-6, torch.float32: 1e-3}
KINDS = {
    "text classifiers": "ForSequenceClassification",
    "token classifiers": "ForTokenClassification",
    "masked language models": "ForMaskedLM",
    "causal language models": "ForCausalLM",
    "image classifiers": "ForImageClassification",
}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 60, "num_labels": 3}
_WIDTHS = dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size"), 16)
_DEPTHS = dict.fromkeys(
    (
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"),
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"),
        *("decoder_attention_heads", "num_key_value_heads", "num_experts_per_tok", "type_vocab_size"),
        *("num_decoder_layers", "num_encoder_layers"),
    ),
    2,
)
_INNER = dict.fromkeys(
    (
        *("intermediate_size", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "hidden_dim"),
        *("moe_intermediate_size", "shared_expert_intermediate_size"),
    ),
    24,
)
_HEADS = dict.fromkeys(
    (
        *("head_dim", "d_kv", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        *("state_size", "rotary_dim"),
    ),
    8,
)
_PLACES = dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64)
_EXPERTS = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4)
_IMAGES = {"image_size": 32, "patch_size": 8}
SMALL = {**_IDS, **_WIDTHS, **_DEPTHS, **_INNER, **_HEADS, **_PLACES, **_EXPERTS, **_IMAGES}


class CannotBeMadeError(Exception):
    """An architecture has no small model that runs on its own."""


@dataclass(frozen=True)
class Call:
    """What is attributed.

    Attributes:
        explainer: makes an explainer with a library's class.
        arguments: of its `attribute`.
        run: runs the model once on the inputs.
    """

    explainer: Callable[[Any], Any]
    arguments: dict[str, Any]
    run: Callable[[], Tensor]


def made(of: Any) -> nn.Module:
    """A small random model of a class, in evaluation mode; raises CannotBeMadeError."""
    no_heads = {name: size for name, size in SMALL.items() if name not in ("head_dim", "num_key_value_heads")}
    for sizes in (SMALL, no_heads, {**_IDS, "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2}):
        with contextlib.suppress(Exception):  # a configuration refuses sizes that do not fit each other
            usual = of.config_class()
            known = [name for name in sizes if not isinstance(getattr(usual, name, ()), (list, tuple, dict))]
            config = of.config_class(**{name: sizes[name] for name in known})
            config._attn_implementation = "eager"
            with torch.device("meta"):
                n_weights = sum(weight.numel() for weight in of(config).parameters())
            if n_weights <= MOST_WEIGHTS:
                torch.manual_seed(0)
                model: nn.Module = of(config).eval()
                for weight in model.parameters():
                    if weight.dim() == 2 and weight.numel():
                        nn.init.normal_(weight, std=1.5 / weight.shape[1] ** 0.5)  # far from linear
                return model
    raise CannotBeMadeError


def _numbers(output: Any) -> Tensor:
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits[:, -1] if logits.dim() == 3 else logits


def call_of(model: Any, kind: str) -> Call:
    """A call of a model with two examples."""
    torch.manual_seed(1)
    if kind == "image classifiers":
        side = model.config.image_size if isinstance(getattr(model.config, "image_size", None), int) else 32
        images = torch.randn(2, getattr(model.config, "num_channels", 3), side, side, dtype=model.dtype)

        def classify(x: Tensor) -> Tensor:
            return _numbers(model(x))

        given = {"inputs": images, "target": 1, "n_steps": N_STEPS}
        return Call(lambda library: library.IntegratedGradients(classify), given, lambda: classify(images))
    ids, mask = torch.randint(3, 59, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    if kind != "causal language models":  # the second text is shorter
        ids[0, 6] = ids[1, 4] = 2
        ids[1, 5:] = mask[1, 5:] = 0

    def read(ids: Tensor, mask: Tensor) -> Tensor:
        return _numbers(model(input_ids=ids, attention_mask=mask))

    given = {"inputs": ids, "baselines": 0, "target": 1, "additional_forward_args": (mask,), "n_steps": N_STEPS}
    layer = model.get_input_embeddings()
    return Call(lambda library: library.LayerIntegratedGradients(read, layer), given, lambda: read(ids, mask))


def compared(of: Any, kind: str) -> tuple[str, float, str]:
    """How an architecture was compared ("float64", "float32", or why not), the difference, and what was said."""
    try:
        model = made(of)
    except CannotBeMadeError:
        return "not made", 0.0, ""
    for dtype in WITHIN:
        try:
            call = call_of(model.to(dtype), kind)
            with torch.no_grad():
                call.run()
        except Exception as error:  # a model may raise anything for arguments that it does not take
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        try:
            theirs = call.explainer(captum.attr).attribute(**call.arguments)
        except Exception as error:
            return "captum fails", 0.0, f"{type(error).__name__}: {error}".splitlines()[0]
        explainer = call.explainer(igfast)
        ours = [explainer.attribute(**call.arguments, internal_batch_size=size) for size in (None, 3)]
        worst = max(relative_difference(one.nan_to_num(), theirs.nan_to_num()) for one in ours)
        same_nans = all(torch.equal(one.isnan(), theirs.isnan()) for one in ours)
        return str(dtype).removeprefix("torch."), worst if same_nans else float("inf"), ""
    return "does not run", 0.0, said


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def measure(kind: str) -> dict[str, Any]:
    """The record of a kind of architecture."""
    import transformers

    transformers.logging.set_verbosity_error()
    ending = KINDS[kind]
    names = sorted(n for n in dir(transformers) if n.endswith(ending) and not n.startswith(("Auto", "TF", "Flax")))
    outcomes: dict[str, list[str]] = {}
    differences: dict[str, float] = {}
    began = time.perf_counter()
    for name in names:
        try:
            with _at_most(SECONDS):
                how, difference, said = compared(getattr(transformers, name), kind)
        except TimeoutError:
            how, difference, said = "takes long", 0.0, ""
        except Exception as error:  # igfast's own: what this is to find
            how, difference, said = "igfast fails", 0.0, f"{type(error).__name__}: {error}".splitlines()[0]
        outcomes.setdefault(how, []).append(name)
        if how in ("float64", "float32"):
            differences[name] = difference
        print(f"{name:<48} {how:<12} {difference:8.1e} {said[:60]}", flush=True)
    limits = {
        name: WITHIN[torch.float64 if name in outcomes.get("float64", []) else torch.float32] for name in differences
    }
    return {
        "benchmark": "architectures",
        "case": kind,
        "architectures": len(names),
        "compared": {dtype: len(outcomes.get(dtype, [])) for dtype in ("float64", "float32")},
        "different": {name: found for name, found in differences.items() if found > limits[name]},
        "worst": {
            dtype: max((differences[name] for name in outcomes.get(dtype, [])), default=0.0)
            for dtype in ("float64", "float32")
        },
        "others": {how: found for how, found in outcomes.items() if how not in ("float64", "float32")},
        "transformers": transformers.__version__,
        "seconds": {"p50": time.perf_counter() - began},
    }


def main() -> None:
    """Compares all kinds, or some, and writes the records."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    for kind in parser.parse_args().kinds:
        print(harness.update("architectures", [measure(kind)]), flush=True)


if __name__ == "__main__":
    main()
