"""inseq runs unmodified with igfast in place of Captum's classes, and one pass gives the numbers of its own loop."""

import warnings

import pytest
import torch
import transformers
from captum.attr import TextTokenInput
from tokenizers import Tokenizer, models, pre_tokenizers

import igfast

PROMPT, ANSWER, FOIL = "w3 w10 w20 w30", "w9 w8 w7", "w5 w8 w6"
OPTIONS = {"n_steps": 20, "method": "riemann_middle"}


@pytest.fixture(scope="module")
def tokenizer():
    ids = {word: number for number, word in enumerate(["<end>", *(f"w{number}" for number in range(1, 60))])}
    words = Tokenizer(models.WordLevel(ids, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("eos_token", "pad_token", "bos_token", "unk_token"), "<end>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = transformers.GPT2Config(**sizes, initializer_range=0.1, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config).eval()


def attributed(network, tokenizer, options=OPTIONS, **others):
    """inseq's attributions of each token of the answer to those before it, (positions, tokens)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a file that inseq leaves open, and of transformers about inseq
        import inseq

        explainer = inseq.load_model(network, "integrated_gradients", tokenizer=tokenizer)
        found = explainer.attribute(
            PROMPT, f"{PROMPT} {ANSWER}", attribution_args=options, show_progress=False, **others
        )
    return found.sequence_attributions[0].target_attributions.sum(dim=-1)


CONTRAST = {
    "attributed_fn": "contrast_prob_diff",
    "contrast_targets": f"{PROMPT} {FOIL}",
    "options": {**OPTIONS, "internal_batch_size": 1},  # inseq compares one row at a time
}


@pytest.mark.parametrize("options", [{}, CONTRAST], ids=["probability", "contrast"])
def test_gives_the_same_numbers(network, tokenizer, options):
    wanted = attributed(network, tokenizer, **options)
    with igfast.patch_captum():
        found = attributed(network, tokenizer, **options)
    torch.testing.assert_close(
        found, wanted, rtol=0, atol=1e-6 * float(wanted.nan_to_num().abs().max()), equal_nan=True
    )


def test_one_pass_gives_the_numbers_of_its_loop(network, tokenizer):
    wanted = attributed(network, tokenizer)
    explainer = igfast.LayerIntegratedGradients(network, network.transformer.wte)
    attribution = igfast.LLMGradientAttribution(explainer, tokenizer, attr_target="prob")
    prompt = TextTokenInput(PROMPT, tokenizer, baselines="<end>")
    found = attribution.attribute(prompt, ANSWER, prefix="path", one_pass=True, **OPTIONS)
    n_prompt = len(prompt.values)
    of_prompt = wanted[:n_prompt, -found.token_attr.shape[0] :].T
    torch.testing.assert_close(found.token_attr, of_prompt, rtol=0, atol=1e-6 * float(of_prompt.abs().max()))
