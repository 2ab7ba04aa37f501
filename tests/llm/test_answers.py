"""Answers that begin at another decoder start, end inside a character, or are summed over spans."""

import pytest
import torch

import igfast
from tests.llm.language import Words, difference, model, ours, prompt

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("by", ["gen_args", "generation_config"])
def test_the_decoders_start_is_that_of_the_generated_answer(by):
    network, layer = model("t5")
    inp, asked = prompt(), {"max_new_tokens": 3, "do_sample": False}
    if by == "gen_args":
        asked["decoder_start_token_id"] = 5
    else:
        network.generation_config.decoder_start_token_id = 5
    explainer = igfast.LLMGradientAttribution(igfast.LayerIntegratedGradients(network, layer), Words())
    result = explainer.attribute(inp, gen_args=asked, n_steps=4)
    ids = network.generate(input_ids=inp.inp_tensor, **asked)[0]
    assert int(ids[0]) == 5
    with torch.no_grad():
        logits = network(inp.inp_tensor, decoder_input_ids=ids[None, :-1]).logits[0]
    wanted = logits.softmax(-1).gather(1, ids[1:, None]).squeeze(1)
    torch.testing.assert_close(result.output_probs.double(), wanted.double(), rtol=1e-5, atol=1e-8)


def test_a_decoder_without_a_start_is_an_error():
    network, layer = model("t5")
    for config in (network.config, network.generation_config):
        config.decoder_start_token_id = config.bos_token_id = None
    with pytest.raises(igfast.ArgumentError, match="decoder begins with"):
        ours(network, layer, prompt())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_answer_that_ends_inside_a_character():
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    of_bytes = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    of_bytes.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    of_bytes.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=of_bytes, pad_token="!")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(alphabet), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    network = transformers.GPT2LMHeadModel(config).eval()
    from captum.attr import TextTokenInput

    answer = torch.tensor(fast.encode("a😀")[:2])
    method = igfast.LayerIntegratedGradients(network, network.get_input_embeddings())
    result = igfast.LLMGradientAttribution(method, fast).attribute(TextTokenInput("hi you", fast), answer, n_steps=4)
    assert len(result.output_tokens) == 2
    assert result.output_tokens[0] == "a"
    assert result.seq_attr.isfinite().all()


def test_numbers_other_than_one_stand_for_absent_tokens():
    network, layer = model("gpt2")
    wanted = ours(network, layer, prompt(), baselines=0).seq_attr
    assert torch.equal(ours(network, layer, prompt(), baselines=0.5).seq_attr, wanted)
    mask = torch.zeros_like(prompt().to_tensor(), dtype=torch.float32)
    mask[0, 0] = 1
    halves = torch.where(mask == 1, 1.0, 0.5)
    of_mask = ours(network, layer, prompt(), baselines=mask).seq_attr
    with pytest.warns(igfast.IgfastWarning, match="other numbers than 0 and 1, and is taken as Captum does"):
        of_halves = ours(network, layer, prompt(), baselines=halves).seq_attr
    assert torch.equal(of_halves, of_mask)
    assert of_mask[0] == 0
    with pytest.raises(igfast.BaselineError):
        ours(network, layer, prompt(), baselines=mask[:, :2])


def test_probabilities_of_spans_and_token_by_token():
    network, layer = model("gpt2")
    each = ours(network, layer, prompt()).output_probs
    torch.testing.assert_close(ours(network, layer, prompt(), one_pass=False).output_probs, each)
    torch.testing.assert_close(ours(network, layer, prompt(), spans=[(0, 2)]).output_probs, each[:2].prod()[None])


def test_attributions_that_are_not_converged_are_said():
    network, layer = model("llama", initializer_range=0.4)
    with pytest.warns(igfast.ConvergenceWarning, match="are not converged with 2 steps"):
        ours(network, layer, prompt(), n_steps=2)


def test_the_options_of_the_layers_method_arrive():
    network, layer = model("gpt2")
    method = igfast.LayerIntegratedGradients(network, layer, memory_budget="1GiB")
    explainer = igfast.LLMGradientAttribution(method, Words())
    _, report = explainer.attribute(prompt(), "w9 w8", n_steps=4, return_report=True)
    assert report.budget_bytes == 2**30
    assert difference(explainer.attribute(prompt(), "w9 w8", n_steps=4).seq_attr, _.seq_attr) == 0
