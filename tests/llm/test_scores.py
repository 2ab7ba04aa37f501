"""What is attributed of an answer, and errors for what cannot be."""

import captum.attr
import pytest
import torch
from torch import nn

import igfast
from tests.llm.language import ANSWER, PROMPT, Words, difference, model, ours, prompt

FOIL = "w8 w9 w7 w4 w5"
IDS, ANSWER_IDS, FOIL_IDS = (Words().encode(text) for text in (PROMPT, ANSWER, FOIL))
pytestmark = pytest.mark.filterwarnings("ignore::igfast.ConvergenceWarning")  # of 8 steps


def expected(name, logits, t, at_input):
    """The number that a name stands for, of the logits (rows, vocabulary) that predict token t."""
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    y, foil = ANSWER_IDS[t], FOIL_IDS[t]
    return {
        "log_prob": lambda: log_probs[:, y],
        "prob": lambda: probs[:, y],
        "logit": lambda: logits[:, y],
        "logit_diff": lambda: logits[:, y] - logits[:, foil],
        "prob_diff": lambda: probs[:, y] - probs[:, foil],
        "entropy": lambda: -(probs * log_probs).sum(-1),
        "kl": lambda: (at_input.exp() * (at_input - log_probs)).sum(-1),
    }[name]()


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("name", ["log_prob", "logit", "logit_diff", "prob_diff", "entropy", "kl"])
def test_named_scores(name, one_pass):
    network, layer = model("gpt2")
    foil = FOIL if name.endswith("diff") else None
    got = ours(network, layer, prompt(), attr_target=name, foil=foil, one_pass=one_pass)
    rows = []
    for t in range(5):
        given = torch.tensor([[*IDS, *ANSWER_IDS[:t]]])
        start = torch.tensor([[*[1] * len(IDS), *ANSWER_IDS[:t]]])
        with torch.no_grad():
            at_input = network(given).logits[:, -1].log_softmax(-1)

        def score(ids, t=t, at_input=at_input):
            return expected(name, network(ids).logits[:, -1], t, at_input)

        explainer = captum.attr.LayerIntegratedGradients(score, layer)
        rows.append(explainer.attribute(given, start, n_steps=8, method="riemann_middle").sum(-1)[0, : len(IDS)])
    assert difference(got.token_attr, torch.stack(rows)) < 1e-8
    assert difference(got.seq_attr, torch.stack(rows).sum(0)) < 1e-8


def test_joint_probability_is_a_product():
    network, layer = model("gpt2")
    got = ours(network, layer, prompt(), attr_target="prob")
    given, start = torch.tensor([IDS]), torch.ones(1, len(IDS), dtype=torch.int64)

    def joint(ids):
        whole = torch.cat([ids, torch.tensor([ANSWER_IDS[:-1]]).expand(len(ids), -1)], 1)
        log_probs = network(whole).logits[:, len(IDS) - 1 :].log_softmax(-1)
        return log_probs[:, range(5), ANSWER_IDS].sum(1).exp()

    explainer = captum.attr.LayerIntegratedGradients(joint, layer)
    wanted = explainer.attribute(given, start, n_steps=8, method="riemann_middle").sum(-1)[0, : len(IDS)]
    assert difference(got.seq_attr, wanted) < 1e-8
    assert got.deltas.shape == (5,)
    with pytest.raises(igfast.OnePassError, match="joint probability"):
        ours(network, layer, prompt(), attr_target="prob", one_pass=False)


def test_functions_of_the_logits():
    network, layer = model("gpt2")
    seen = []

    def margin(logits, ids, t):
        seen.append((logits.shape[1:], ids.tolist(), t))
        return logits[:, t, ids[t]] - logits[:, t].logsumexp(-1)

    got = ours(network, layer, prompt(), attr_target=margin, one_pass=True)
    wanted = ours(network, layer, prompt(), one_pass=True)
    assert difference(got.token_attr, wanted.token_attr) < 1e-10
    assert ((5, 60), ANSWER_IDS, 4) in seen
    with pytest.raises(igfast.OutputError, match="attr_target must return one number for each row"):
        ours(network, layer, prompt(), attr_target=lambda logits, ids, t: logits[:, t])


@pytest.mark.parametrize(
    ("baselines", "start"),
    [("pad", 1), ("eos", 2), ("bos", 3), ("w17", 17)],
)
def test_named_baselines(baselines, start):
    network, layer = model("gpt2")
    wanted = ours(network, layer, prompt(baselines=start))
    assert torch.equal(ours(network, layer, prompt(baselines=9), baselines=baselines).token_attr, wanted.token_attr)


@pytest.mark.parametrize("prefix", ["fixed", "path"])
@pytest.mark.parametrize("skip_tokens", [None, [3, 40]])
def test_baselines_at_the_layer(prefix, skip_tokens):
    """The embedding of a token, given as a vector, is that token as the baseline."""
    network, layer = model("gpt2")
    inp = prompt(skip_tokens=skip_tokens)
    vector = layer.weight.detach()[1].expand(1, 11, 32)
    wanted = ours(network, layer, inp, prefix=prefix)
    for one_pass in (True, False):
        options = {"prefix": prefix, "one_pass": one_pass}
        got = ours(network, layer, inp, baselines=igfast.baselines.AtLayer(vector), **options)
        assert difference(got.token_attr, wanted.token_attr) < 1e-8
        assert difference(got.deltas, wanted.deltas) < 1e-6
        zeros = [ours(network, layer, inp, baselines=b, **options) for b in (igfast.baselines.AtLayer(0.0), "zero")]
        assert torch.equal(zeros[0].token_attr, zeros[1].token_attr)


BAD = {
    "another input": ({"inp": PROMPT}, igfast.ArgumentTypeError, "inp must be a captum.attr.TextTokenInput"),
    "no name": ({"baselines": "cls"}, igfast.ArgumentError, 'one of pad, bos, eos, unk, mask, "zero" or a token'),
    "no such token": ({"baselines": "mask"}, igfast.ArgumentError, "no mask_token_id; it has pad, bos, eos"),
    "baselines of a type": ({"baselines": [1]}, igfast.ArgumentTypeError, "a number, a tensor or an AtLayer"),
    "baselines of a shape": ({"baselines": torch.zeros(1, 3).long()}, igfast.BaselineError, "shape of inputs"),
    "empty answer": ({"target": ""}, igfast.TargetError, "at least one token"),
    "answers": ({"target": torch.ones(1, 3).long()}, igfast.TargetError, "in one dimension"),
    "floating answer": ({"target": torch.ones(3)}, igfast.ArgumentTypeError, "integers, the ids of tokens"),
    "answer of a type": ({"target": 3}, igfast.ArgumentTypeError, "target must be a text, a tensor"),
    "gen_args": ({"gen_args": {"max_new_tokens": 2}}, igfast.ArgumentError, "gen_args are for answers"),
    "a foil too many": ({"foil": FOIL}, igfast.ArgumentError, "foil is for attr_target=logit_diff or prob_diff"),
    "no spans": ({"spans": []}, igfast.ArgumentError, "at least one pair"),
    "spans outside": ({"spans": [(0, 6)]}, igfast.ArgumentError, "0 <= start < stop <= 5"),
    "spans of a type": ({"spans": [3]}, igfast.ArgumentTypeError, "pairs of integers"),
    "spans of nothing": ({"spans": [(0, 1)], "per_token": False}, igfast.ArgumentError, "got spans too"),
    "prefix": ({"prefix": "moving"}, igfast.ArgumentError, 'prefix "fixed" or "path"'),
    "one_pass": ({"one_pass": "always"}, igfast.ArgumentError, 'one_pass must be "auto"'),
    "unknown argument": ({"steps": 3}, igfast.ArgumentTypeError, r"attribute got \['steps'\]"),
    "steps": ({"n_steps": 0}, igfast.ArgumentError, "n_steps"),
    "tolerance": ({"tolerance": 0.1}, igfast.ArgumentError, "n_steps and tolerance exclude each other"),
    "gradients alone": (
        {"tolerance": 0.1, "n_steps": None, "multiply_by_inputs": False},
        igfast.ArgumentError,
        "tolerance is for an attr_method with multiply_by_inputs=True",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    options, error, text = BAD[case]
    network, layer = model("gpt2")
    with pytest.raises(error, match=text):
        ours(network, layer, **{"inp": prompt(), **options})


def test_bad_scores_and_foils():
    network, layer = model("gpt2")
    with pytest.raises(igfast.ArgumentError, match="a function or one of log_prob, prob"):
        ours(network, layer, prompt(), attr_target="probability")
    with pytest.raises(igfast.ArgumentTypeError, match="a name or a function"):
        ours(network, layer, prompt(), attr_target=3)
    with pytest.raises(igfast.ArgumentError, match="needs a foil"):
        ours(network, layer, prompt(), attr_target="logit_diff")
    with pytest.raises(igfast.ArgumentError, match="as many tokens as the answer, 5; got 1"):
        ours(network, layer, prompt(), attr_target="logit_diff", foil="w3")


def test_paths_of_a_prefix_that_does_not_move():
    network, layer = model("t5")
    with pytest.raises(igfast.ArgumentError, match='prefix="path" is for methods with a path'):
        ours(network, layer, prompt(), prefix="path")


class PooledOnce(nn.Module):
    """Adds the mean of all tokens, of which there is one, to the logits."""

    def __init__(self, network):
        super().__init__()
        self.network, self.pool = network, nn.Identity()

    def forward(self, ids):
        output = self.network(ids)
        output.logits = output.logits + self.pool(output.logits.mean(1, keepdim=True))
        return output


@pytest.mark.filterwarnings("ignore:Multiple layers provided")
def test_bad_methods_and_layers():
    network, layer = model("gpt2")
    with pytest.raises(igfast.ArgumentTypeError, match="attr_method must be one of"):
        igfast.LLMGradientAttribution(igfast.IntegratedGradients(network), Words())
    with pytest.raises(igfast.ArgumentTypeError, match=r"a language model, a torch\.nn\.Module"):
        igfast.LLMGradientAttribution(igfast.LayerIntegratedGradients(lambda x: network(x), layer), Words())
    several = igfast.LayerIntegratedGradients(network, [layer, network.transformer.h[0]])
    with pytest.raises(igfast.LayerError, match="must have one layer"):
        igfast.LLMGradientAttribution(several, Words())
    pooled = PooledOnce(network)
    with pytest.raises(igfast.LayerError, match=r"\(1, 11, features\), with an entry for each token; got"):
        ours(pooled, pooled.pool, prompt())


def test_a_model_without_logits():
    network, layer = model("gpt2")

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, ids):
            return self.network(ids).logits

    with pytest.raises(igfast.OutputTypeError, match="must return an object with logits"):
        ours(Bare(), layer, prompt())
    with pytest.raises(igfast.ArgumentError, match="the model has no `generate`"):
        ours(Bare(), layer, prompt(), None)
