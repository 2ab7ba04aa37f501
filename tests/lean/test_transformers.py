"""What lean execution keeps of transformers, and that their values and gradients stay as they are."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from igfast.lean import Execution
from igfast.lean.rerun import rerun_modules

TOKENS, HIDDEN, LAYERS = 64, 256, 8
LLAMA = {
    "vocab_size": 50,
    "hidden_size": HIDDEN,
    "intermediate_size": 7 * HIDDEN // 2,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
}


def llama(dtype=torch.float32, **options):
    torch.manual_seed(0)
    return transformers.LlamaModel(transformers.LlamaConfig(**LLAMA, **options)).to(dtype).eval()


def gpt2(dtype=torch.float32, **options):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_embd=HIDDEN, n_layer=LAYERS, n_head=2, **options)
    return transformers.GPT2Model(config).to(dtype).eval()


def values(network, rows=2):
    generator = torch.Generator().manual_seed(1)
    dtype = next(network.parameters()).dtype
    return torch.randn(rows, TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()


def run(network, x, lean=None):
    def call():
        return network(inputs_embeds=x, use_cache=False).last_hidden_state

    if lean is None:
        output = call()
    else:
        with lean.active():
            output = call()
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output.dtype)
    return output, torch.autograd.grad((output * weights).sum(), x)[0]


def kept_bytes(network):
    """The bytes that autograd keeps of a forward pass for each token, layer and hidden unit, without weights."""
    lean, x = Execution("", required=True, module=network), values(network)
    known = {w.untyped_storage().data_ptr() for w in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    lean._mode.ignored = keep
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        lean.active(),
    ):
        output = network(inputs_embeds=x, use_cache=False).last_hidden_state
    assert output.requires_grad
    return sum(kept.values()) / (x.numel() * LAYERS)


@pytest.mark.parametrize(
    ("network", "most"),
    [(llama(), 47), (gpt2(), 41), (llama(torch.bfloat16), 24)],
    ids=["llama", "gpt2", "llama, bfloat16"],
)
def test_keeps_little(network, most):
    assert kept_bytes(network) <= most


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_gradients_are_plain_autograds(make, dtype):
    network = make(dtype)
    x, lean = values(network), Execution("", required=True, module=network)
    (wanted, wanted_grad), (got, grad) = run(network, x), run(network, x, lean)
    assert torch.equal(got, wanted)
    assert torch.equal(grad, wanted_grad)


@pytest.mark.parametrize(
    "activation", [F.silu, F.gelu, lambda x: F.gelu(x, approximate="tanh")], ids=["silu", "gelu", "gelu, tanh"]
)
@pytest.mark.parametrize("turned", [False, True])
def test_products_with_activations(activation, turned):
    torch.manual_seed(0)
    x, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    lean = Execution("", required=True)
    results = []
    for mode in (None, lean):
        saved = []

        def keep(tensor, saved=saved):
            saved.append(tensor.data_ptr())
            return tensor

        lean._mode.ignored = keep
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            if mode is None:
                y = activation(x) * up if not turned else up * activation(x)
            else:
                with mode.active():
                    y = activation(x) * up if not turned else up * activation(x)
        results.append((y, *torch.autograd.grad(y.sin().sum(), (x, up)), len(set(saved))))
    for wanted, got in zip(*(r[:3] for r in results), strict=True):
        assert torch.equal(wanted, got)
    assert [r[3] for r in results] == [3, 2]


def test_an_activation_that_is_used_twice():
    torch.manual_seed(0)
    x, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def call():
        y = F.silu(x)
        return (y * up).sum() + y.sin().sum() + (y * y).sum()

    wanted = torch.autograd.grad(call(), (x, up))
    with Execution("", required=True).active():
        total = call()
    for one, other in zip(torch.autograd.grad(total, (x, up)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)


def test_an_activation_that_was_written_to():
    x, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def call():
        y = F.silu(x)
        y += 1
        return (y * up).sum()

    wanted = torch.autograd.grad(call(), (x, up))
    with Execution("", required=True).active():
        total = call()
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(total, (x, up)), wanted, strict=True))


def test_an_input_that_was_written_to_is_an_error():
    x, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with Execution("", required=True).active():
        gate = x.clone()
        y = F.silu(gate)
        total = (y * up).sum()
        gate += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total, (x, up))


def test_modules_are_left_as_they_were():
    network = gpt2()
    lean = Execution("", required=True, module=network)
    modules = rerun_modules(network)
    assert len(modules) == LAYERS
    calls = []
    modules[0].register_forward_hook(lambda *_: calls.append(1))

    def fails():
        with lean.active():
            assert all("forward" in module.__dict__ for module in modules)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not any("forward" in module.__dict__ for module in modules)
    run(network, values(network), lean)
    assert calls == [1]  # the module's own forward runs again, its hooks do not


def test_replicated_models_run_as_they_are():
    assert rerun_modules(nn.DataParallel(gpt2())) == []
