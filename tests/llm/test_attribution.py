"""Attributions of language models are those of Captum's loop over the tokens of an answer."""

import captum.attr
import pytest
import torch
from captum.attr import TextTokenInput

import igfast
from igfast.cli.run import _counting
from tests.llm.language import ANSWER, PROMPT, Words, captums, difference, model, ours, prompt

NETWORKS = ["gpt2", "llama", "block", "mistral", "bloom", "qwen3", "gemma", "mamba"]
pytestmark = pytest.mark.filterwarnings("ignore::igfast.ConvergenceWarning")  # of 8 steps


def in_one_pass(*args, **options):
    return ours(*args, one_pass=True, **options)


@pytest.mark.parametrize("name", ["llama", "bloom"])  # with and without `logits_to_keep`
def test_the_head_as_the_layer(name):
    """It gives out logits of all positions then, not of the answer's alone."""
    network, _ = model(name)
    head = network.get_output_embeddings()
    wanted, got = captums(network, head, prompt()), ours(network, head, prompt())
    assert difference(got.token_attr, wanted.token_attr) < 1e-8


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_captums_loop(name):
    network, layer = model(name)
    wanted, got = captums(network, layer, prompt()), in_one_pass(network, layer, prompt())
    assert difference(got.token_attr, wanted.token_attr) < (1e-7 if name == "mamba" else 1e-8)
    assert difference(got.seq_attr, wanted.seq_attr) < (1e-7 if name == "mamba" else 1e-8)
    assert got.input_tokens == wanted.input_tokens
    assert got.output_tokens == wanted.output_tokens


@pytest.mark.parametrize(
    "options",
    [
        {"baselines": torch.tensor([[1, 0, 0, 1, 0, 1, 0]])},
        {"multiply_by_inputs": False},
        {"attribute_to_layer_input": True},
        {"internal_batch_size": 3},
        {"n_steps": 16, "method": "riemann_left"},
        {"target": torch.tensor([4, 5])},
        {"target": "w9"},
        {"grad_kwargs": {"create_graph": True}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_takes_captums_arguments(options):
    network, layer = model("block")
    wanted, got = captums(network, layer, prompt(), **options), in_one_pass(network, layer, prompt(), **options)
    assert difference(got.token_attr, wanted.token_attr) < 1e-8


def test_baseline_that_is_the_input():
    network, layer = model("gpt2")
    assert not in_one_pass(network, layer, prompt(), baselines=1).token_attr.any()


@pytest.mark.parametrize("skip_tokens", [[3, 40], ["w10"]])
def test_skips_tokens(skip_tokens):
    network, layer = model("gpt2")
    wanted, got = (f(network, layer, prompt(skip_tokens=skip_tokens)) for f in (captums, in_one_pass))
    assert got.input_tokens == wanted.input_tokens
    assert difference(got.token_attr, wanted.token_attr) < 1e-8
    some = torch.tensor([[0, 1, *[0] * (len(got.input_tokens) - 2)]])
    wanted, got = (f(network, layer, prompt(skip_tokens=skip_tokens), baselines=some) for f in (captums, in_one_pass))
    assert difference(got.token_attr, wanted.token_attr) < 1e-8


def test_generates_the_answer():
    network, layer = model("llama")
    gen_args = {"max_new_tokens": 4, "do_sample": False}
    wanted = captums(network, layer, prompt(), None, gen_args=gen_args)
    got = in_one_pass(network, layer, prompt(), None, gen_args=gen_args)
    assert got.output_tokens == wanted.output_tokens
    assert difference(got.token_attr, wanted.token_attr) < 1e-8


@pytest.mark.parametrize("multiply", [True, False])
def test_gradient_times_activation(multiply):
    network, layer = model("llama")
    method = captum.attr.LayerGradientXActivation(network, layer, multiply_by_inputs=multiply)
    wanted = captum.attr.LLMGradientAttribution(method, Words()).attribute(prompt(), ANSWER)
    got = igfast.LLMGradientAttribution(method, Words()).attribute(prompt(), ANSWER, one_pass=True)
    assert difference(got.token_attr, wanted.token_attr) < 1e-8
    assert got.deltas is None
    with pytest.raises(igfast.ArgumentError, match="a gradient has no delta"):
        igfast.LLMGradientAttribution(method, Words()).attribute(prompt(), ANSWER, return_convergence_delta=True)


def test_gradient_shap_is_left_to_captum():
    network, layer = model("gpt2")
    results = []
    for module in (captum.attr, igfast):
        torch.manual_seed(0)
        explainer = module.LLMGradientAttribution(captum.attr.LayerGradientShap(network, layer), Words())
        results.append(explainer.attribute(prompt(), ANSWER, baselines=torch.zeros(1, 7).long(), n_samples=2))
    assert torch.equal(results[0].token_attr, results[1].token_attr)
    with pytest.raises(igfast.ArgumentError, match=r"does not have \['per_token=False'\]"):
        explainer.attribute(prompt(), ANSWER, per_token=False, baselines=torch.zeros(1, 7).long())


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders(name):
    """Captum's class does not have these; the reference is its attribution of each token, with a decoder's input."""
    network, layer = model(name)
    ids, answer = torch.tensor([Words().encode(PROMPT)]), Words().encode(ANSWER)
    rows = []
    for t in range(len(answer)):

        def score(inputs, t=t):
            given = torch.tensor([[2, *answer[:t]]]).expand(len(inputs), -1)
            return network(inputs, decoder_input_ids=given).logits[:, -1].log_softmax(-1)[:, answer[t]]

        explainer = captum.attr.LayerIntegratedGradients(score, layer)
        rows.append(explainer.attribute(ids, torch.ones_like(ids), n_steps=8, method="riemann_middle").sum(-1))
    for one_pass in (True, False):
        got = ours(network, layer, prompt(), one_pass=one_pass)
        assert difference(got.token_attr, torch.cat(rows)) < 1e-5
    gen_args = {"max_new_tokens": 3, "do_sample": False}
    got = ours(network, layer, prompt(), None, gen_args=gen_args)
    generated = network.generate(ids, **gen_args)[0, 1:].tolist()
    assert got.output_tokens == Words().convert_ids_to_tokens(generated)


def test_sum_over_the_answer_costs_one_backward_pass():
    network, layer = model("gpt2")
    wanted = captums(network, layer, prompt())
    got = in_one_pass(network, layer, prompt(), per_token=False)
    assert got.token_attr is None
    assert difference(got.seq_attr, wanted.seq_attr) < 1e-8
    assert got.deltas.shape == (1,)


def test_spans_are_sums_of_tokens():
    network, layer = model("gpt2")
    wanted = captums(network, layer, prompt())
    got = in_one_pass(network, layer, prompt(), spans=[(0, 2), (1, 5)])
    assert difference(got.token_attr[0], wanted.token_attr[:2].sum(0)) < 1e-8
    assert difference(got.token_attr[1], wanted.token_attr[1:].sum(0)) < 1e-8
    assert difference(got.seq_attr, wanted.seq_attr) < 1e-8
    assert got.output_tokens == ["w9 w8", "w8 w7 w6 w5"]
    assert got.deltas.shape == got.output_probs.shape == (2,)


@pytest.mark.parametrize("one_pass", [True, False])
def test_path_of_the_prefix(one_pass):
    """Token by token, the reference attributes the prompt and the answer so far from padding tokens."""
    network, layer = model("gpt2")
    got = ours(network, layer, prompt(), prefix="path", one_pass=one_pass)
    ids, answer = Words().encode(PROMPT), Words().encode(ANSWER)
    for t, row in enumerate(got.token_attr):
        given = torch.tensor([[*ids, *answer[:t]]])

        def score(inputs, t=t):
            return network(inputs).logits[:, -1].log_softmax(-1)[:, answer[t]]

        explainer = captum.attr.LayerIntegratedGradients(score, layer)
        wanted = explainer.attribute(given, torch.ones_like(given), n_steps=8, method="riemann_middle").sum(-1)
        assert difference(row, wanted[0, : len(ids)]) < 1e-8


def test_deltas_are_those_of_each_token():
    network, layer = model("block")
    result, deltas = in_one_pass(network, layer, prompt(), return_convergence_delta=True)
    ids, answer = torch.tensor([Words().encode(PROMPT)]), Words().encode(ANSWER)
    for t, delta in enumerate(deltas):
        prefix = torch.tensor([answer[:t]]).long()

        def score(inputs, t=t):
            return network(inputs).logits[:, -1].log_softmax(-1)[:, answer[t]]

        explainer = captum.attr.LayerIntegratedGradients(score, layer)
        given, start = torch.cat([ids, prefix], 1), torch.cat([torch.ones_like(ids), prefix], 1)
        options = {"n_steps": 8, "method": "riemann_middle", "return_convergence_delta": True}
        assert abs(explainer.attribute(given, start, **options)[1].item() - delta.item()) < 1e-6
    assert torch.equal(deltas, result.deltas)


def test_result_has_probabilities_and_the_prompt():
    network, layer = model("gpt2")
    inp = prompt()
    got = ours(network, layer, inp)
    with torch.no_grad():
        logits = network(torch.tensor([Words().encode(f"{PROMPT} {ANSWER}")])).logits[0, 6:-1]
    wanted = logits.softmax(-1)[range(5), Words().encode(ANSWER)]
    assert difference(got.output_probs, wanted.float()) < 1e-6
    assert got.inp is inp


def test_half_precision_gives_single():
    network, layer = model("llama", torch.bfloat16)
    got = ours(network, layer, prompt(), one_pass=True)
    assert got.token_attr.dtype is torch.float32
    exact = ours(network.double(), layer, prompt(), one_pass=True)
    assert difference(got.seq_attr.double(), exact.seq_attr) < 0.1


@pytest.mark.parametrize("by", ["logits in single precision", "autocast"])
def test_rounding_of_half_precision_is_told_from_dependence(by):
    network, layer = model("llama", torch.bfloat16 if by != "autocast" else torch.float32, hidden_size=256)
    network.register_forward_hook(lambda _, __, output: output.__setitem__("logits", output.logits.float()))
    with torch.autocast("cpu", torch.bfloat16, enabled=by == "autocast"):
        result = ours(network, layer, prompt(), one_pass=True)
    exact = ours(network.float(), layer, prompt(), one_pass=False)
    assert difference(result.seq_attr, exact.seq_attr) < 0.2


def test_buffers_of_training_are_as_before():
    class Counts(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, ids, **options):
            self.calls += 1
            return self.inner(ids, **options)

    network, layer = model("llama")
    counts = Counts(network)
    counts.training = True
    ours(counts, layer, prompt(), attr_target="kl", n_steps=2)
    assert counts.calls == 0


def test_meets_a_tolerance():
    network, layer = model("llama", initializer_range=0.4)
    options = {"n_steps": 2000, "return_report": True}
    exact, _ = in_one_pass(network, layer, prompt(), **options)
    explainer = igfast.LayerIntegratedGradients(network, layer)
    attribution = igfast.LLMGradientAttribution(explainer, Words())
    got, report = attribution.attribute(prompt(), ANSWER, tolerance=0.01, return_report=True)
    assert report.convergence.converged == (True,)
    errors = (got.token_attr - exact.token_attr).norm(dim=1) / exact.token_attr.norm(dim=1)
    assert float(errors.max()) < 0.015
    assert float(got.deltas.abs().max()) < 1e-6


def test_is_put_in_captums_place():
    network, layer = model("gpt2")
    with igfast.patch_captum():
        explainer = captum.attr.LayerIntegratedGradients(network, layer)
        attribution = captum.attr.LLMGradientAttribution(explainer, Words())
        assert isinstance(attribution, igfast.LLMGradientAttribution)
        assert isinstance(attribution.attribute(prompt(), ANSWER, n_steps=8), igfast.LLMAttributionResult)
    assert captum.attr.LLMGradientAttribution is not igfast.LLMGradientAttribution


def test_a_swapped_script_counts_its_calls():
    network, layer = model("gpt2")
    with _counting() as calls:
        ours(network, layer, prompt())
    assert calls["LLMGradientAttribution"] == 1


def test_first_token_as_baseline_is_told_once(monkeypatch):
    monkeypatch.setattr("igfast.llm.token_baselines._warned", set())
    network, layer = model("gpt2")
    inp = TextTokenInput(PROMPT, Words())
    with pytest.warns(igfast.IgfastWarning, match="the baseline is id 0, which is 'w0'"):
        ours(network, layer, inp)
    ours(network, layer, inp)
