"""When one pass is exact, how that is checked, and what it costs."""

import warnings

import accelerate
import captum.attr
import pytest
import torch
import transformers
from torch import nn

import igfast
from igfast.llm.one_pass import why_not_one_pass
from igfast.llm.teacher import Teacher
from tests.llm.language import ANSWER, LLAMA, N_WORDS, PROMPT, Words, captums, difference, model, ours, prompt

IDS, ANSWER_IDS = torch.tensor([Words().encode(PROMPT)]), torch.tensor(Words().encode(ANSWER))
pytestmark = pytest.mark.filterwarnings("ignore::igfast.ConvergenceWarning")  # of 8 steps


def dynamic():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return model("llama", max_position_embeddings=9, rope_parameters=rope)


def longrope():
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [2.0] * 4, "short_factor": [1.0] * 4}
    return model("phi3", original_max_position_embeddings=9, rope_parameters=rope, pad_token_id=0)


class Mean(nn.Module):
    """Lets every position see the mean of all."""

    def __init__(self, network):
        super().__init__()
        self.network, self.config = network, network.config

    def forward(self, ids):
        output = self.network(ids)
        output.logits = output.logits + 1e-3 * output.logits.mean(dim=1, keepdim=True)
        return output


def mean():
    network, layer = model("gpt2")
    return Mean(network), layer


REFUSED = {"bert": lambda: model("bert"), "dynamic": dynamic, "longrope": longrope, "mean": mean}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_depends_on_later_tokens(name):
    network, layer = REFUSED[name]()
    wanted = captums(network, layer, prompt())
    with pytest.warns(igfast.IgfastWarning, match="each token of the answer was attributed by itself"):
        got = ours(network, layer, prompt())
    assert difference(got.token_attr, wanted.token_attr) < 1e-8
    assert difference(got.seq_attr, wanted.seq_attr) < 1e-8
    with pytest.raises(igfast.OnePassError, match="one_pass=True, but"):
        ours(network, layer, prompt(), one_pass=True)


def test_refuses_dropout():
    network, layer = model("gpt2")
    network.train()
    with pytest.warns(igfast.IgfastWarning, match="each token of the answer was attributed by itself"):
        ours(network, layer, prompt(), internal_batch_size=1)
    assert network.training


def test_refuses_xlnet():
    config = transformers.XLNetConfig(vocab_size=N_WORDS, d_model=32, n_layer=2, n_head=4, d_inner=48)
    torch.manual_seed(0)
    teacher = Teacher(transformers.XLNetLMHeadModel(config).eval(), 7, ANSWER_IDS, [range(5)])
    ids = teacher.ids(IDS, ANSWER_IDS)
    teacher.seen = []
    with torch.no_grad():
        teacher(ids)
        assert "changes" in why_not_one_pass(teacher, [(ids, teacher.seen[0])])


def test_dynamic_embeddings_within_their_length_are_exact():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    network, layer = model("llama", rope_parameters=rope)
    wanted = captums(network, layer, prompt())
    assert difference(ours(network, layer, prompt(), one_pass=True).token_attr, wanted.token_attr) < 1e-8


def test_takes_experts():
    network, layer = model("mixtral", torch.float32, num_local_experts=4)  # experts do not take float64
    wanted = captums(network, layer, prompt())
    assert difference(ours(network, layer, prompt(), one_pass=True).token_attr, wanted.token_attr) < 1e-5


def test_gradients_at_later_positions_are_checked():
    """A model whose values are causal, and whose gradients are not."""

    class Leak(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad + 1e-3 * grad.sum(dim=1, keepdim=True)

    network, layer = model("gpt2")
    network.transformer.ln_f.register_forward_hook(lambda module, args, output: Leak.apply(output))
    with pytest.raises(igfast.OnePassError, match="its gradient there is not zero"):
        ours(network, layer, prompt(), one_pass=True)
    ours(network, layer, prompt(), one_pass=True, per_token=False)  # has no later positions


class Counter:
    def __init__(self, network):
        self.rows = self.backward = self.largest = 0
        network.register_forward_pre_hook(self.count)
        network.register_forward_hook(self.watch)

    def count(self, module, args):
        self.rows += len(args[0])

    def watch(self, module, args, output):
        self.largest = max(self.largest, output.logits.numel() // len(output.logits))
        if output.logits.requires_grad:
            output.logits.register_hook(self.add)

    def add(self, grad):
        self.backward += len(grad)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
@pytest.mark.parametrize("per_token", [True, False])
def test_costs_seven_forward_rows_more(name, per_token):
    network, layer = model(name)
    counter = Counter(network)
    ours(network, layer, prompt(), n_steps=20, per_token=per_token)
    assert counter.rows == 20 + 7
    assert counter.backward == 20 * (5 if per_token else 1)
    assert counter.largest == 5 * N_WORDS


def test_head_sees_the_answers_positions_only():
    """A model without an argument for that."""

    class Plain(transformers.LlamaForCausalLM):
        def forward(self, input_ids):
            return super().forward(input_ids)

    torch.manual_seed(0)
    network = Plain(transformers.LlamaConfig(**LLAMA)).double().eval()
    wanted = captums(network, network.model.embed_tokens, prompt())
    seen = []
    network.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    got = ours(network, network.model.embed_tokens, prompt(), one_pass=True)
    assert set(seen) <= {5, 1}
    assert difference(got.token_attr, wanted.token_attr) < 1e-8
    assert not network.lm_head._forward_pre_hooks


def test_leaves_no_trace_after_an_error():
    network, layer = model("gpt2")
    hooks = len(layer._forward_hooks), torch.is_grad_enabled()

    def fails(logits, ids, t):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ours(network, layer, prompt(), attr_target=fails)
    assert (len(layer._forward_hooks), torch.is_grad_enabled()) == hooks
    assert all(parameter.grad is None for parameter in network.parameters())


def test_compiled_and_wrapped_models():
    network, layer = model("llama")
    wanted = captums(network, layer, prompt())
    wrapped = nn.DataParallel(network)
    wrapped.config = network.config
    got = ours(wrapped, layer, prompt(), one_pass=True)
    assert difference(got.token_attr, wanted.token_attr) < 1e-8


def test_offloaded_weights():
    network, layer = model("llama")
    wanted = ours(network, layer, prompt(), one_pass=True)
    accelerate.cpu_offload(network, execution_device="cpu")
    assert all(weight.is_meta for weight in network.parameters())
    found = ours(network, layer, prompt(), one_pass=True)
    assert difference(found.token_attr, wanted.token_attr) < 1e-12
    assert all(weight.is_meta for weight in network.parameters())


def test_memory_does_not_grow():
    import psutil

    network, layer = model("gpt2", torch.float32)
    used = []
    for call in range(300):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours(network, layer, prompt(), per_token=bool(call % 2))
        if call in (50, 299):
            used.append(psutil.Process().memory_info().rss)
    assert used[1] < 1.02 * used[0]


def test_captums_own_class_is_untouched():
    assert captum.attr.LLMGradientAttribution.attribute is not igfast.LLMGradientAttribution.attribute
