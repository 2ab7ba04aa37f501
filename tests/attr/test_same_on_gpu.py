"""Each kind of call gives the numbers of the CPU, in float64: all methods, rules, layers, targets and measures.

Without a GPU, the same calls run on the CPU twice, which keeps them up to date until there is one.
"""

import copy
import importlib.util

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

import igfast
from igfast.lean.mode import LeanMode
from tests import models
from tests.lean import calls
from tests.oracle import relative_difference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore::igfast.ConvergenceWarning")


def rows(device, n=5):
    return torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)


def image(device, n=2):
    return torch.randn(n, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)


def net(device):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.Sigmoid(), nn.Linear(12, 3)]
    return nn.Sequential(*layers).double().eval().to(device)


def convnet(device):
    return models.convnet(side=16).to(device)


class Blocks(nn.Module):
    """A transformer in small: embedding, three repeated blocks, and the mean over tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True) for _ in range(3)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, ids, mask=None):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, src_key_padding_mask=mask)
        return self.head(x.mean(1))


def tokens(device):
    network = Blocks().double().eval().to(device)
    ids = torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(0)).to(device)
    return network, ids, torch.arange(7, device=device).expand(3, 7) >= torch.tensor([[7], [5], [3]], device=device)


def fixed(device, **options):
    return igfast.IntegratedGradients(net(device)).attribute(rows(device), **{"target": 1, **options})


def at_layer(device, layer, **options):
    network = net(device)
    return igfast.LayerIntegratedGradients(network, network[layer]).attribute(rows(device), target=1, **options)


def of_neuron(device, selector, layer=2):
    network = net(device)
    return igfast.NeuronIntegratedGradients(network, network[layer]).attribute(rows(device), selector)


def of_words(device, **options):
    network, ids, mask = tokens(device)
    explainer = igfast.LayerIntegratedGradients(network, network.embedding)
    return explainer.attribute(ids, target=2, additional_forward_args=mask, **options)


def shap(device, kind=igfast.GradientShap, *args):
    """The generator of points is NumPy's; that of noise is the device's, so there is none."""
    np.random.seed(0)
    torch.manual_seed(0)
    return kind(net(device), *args).attribute(rows(device), baselines=rows(device)[:1] * 0, target=1, stdevs=0.0)


def noisy(device, **options):
    tunnel = captum.attr.NoiseTunnel(igfast.IntegratedGradients(net(device)))
    return tunnel.attribute(rows(device), target=1, nt_samples=3, stdevs=0.0, **options)


def in_language_model(device, **options):
    from tests.llm import language

    network, layer = language.model("llama")
    got = language.ours(network.to(device), layer, language.prompt(), **options)
    return got.seq_attr, got.token_attr


def with_measures(device, n_measures):
    """The measures against lack of memory: computing blocks again, and on a GPU keeping tensors in main memory."""
    network, ids, mask = tokens(device)
    explainer = igfast.LayerIntegratedGradients(network, network.embedding)
    options = {"target": 2, "additional_forward_args": mask, "n_steps": 9, "internal_batch_size": 9}
    wanted, fails = explainer.attribute(ids, **options), [n_measures]

    def fail(module, inputs, output):
        if torch.is_grad_enabled() and len(output) == 1 and fails[0]:
            fails[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with network.head.register_forward_hook(fail), pytest.warns(igfast.IgfastWarning, match="out of memory"):
        got = explainer.attribute(ids, **{**options, "internal_batch_size": 1})
    assert relative_difference(got.cpu(), wanted.cpu()) <= 1e-12
    return got


def explained(device):
    explanation = igfast.IntegratedGradients(net(device)).explain(rows(device), target=1)
    return explanation.attributions


KINDS = {
    "fixed steps": lambda d: fixed(d, return_convergence_delta=True),
    "chunks": lambda d: fixed(d, internal_batch_size=7),
    "not multiplied": lambda d: igfast.IntegratedGradients(net(d), multiply_by_inputs=False).attribute(
        rows(d), target=0
    ),
    "trapezoid": lambda d: fixed(d, method="riemann_trapezoid", n_steps=7),
    "baseline of numbers": lambda d: fixed(d, baselines=0.5),
    "baseline of one row": lambda d: fixed(d, baselines=rows(d)[:1]),
    "several baselines": lambda d: fixed(d, baselines=igfast.Baselines(rows(d)[:3])),
    "tolerance": lambda d: fixed(d, tolerance=0.01, return_convergence_delta=True),
    "tolerance, many": lambda d: igfast.IntegratedGradients(net(d)).attribute(rows(d, 1100), target=2, tolerance=0.05),
    "tolerance, images": lambda d: igfast.IntegratedGradients(convnet(d)).attribute(image(d), target=1, tolerance=0.02),
    "tolerance, words": lambda d: of_words(d, tolerance=0.02),
    "targets of rows": lambda d: fixed(d, target=torch.tensor([0, 1, 2, 1, 0], device=d)),
    "several targets": lambda d: igfast.IntegratedGradients(net(d)).attribute_targets(rows(d), [0, 2]),
    "images": lambda d: igfast.IntegratedGradients(convnet(d)).attribute(image(d), target=1),
    "layer": lambda d: at_layer(d, 1),
    "layer's input": lambda d: at_layer(d, 2, attribute_to_layer_input=True, return_convergence_delta=True),
    "words": of_words,
    "words, recomputed": lambda d: with_measures(d, 1),
    "words, in main memory": lambda d: with_measures(d, 1 + (d == "cuda")),
    "neuron": lambda d: of_neuron(d, 3),
    "neurons": lambda d: of_neuron(d, slice(2, 5)),
    "function of neurons": lambda d: of_neuron(d, lambda out: out[:, :4].sum(1)),
    "expected gradients": shap,
    "noise": noisy,
    "noise, squared": lambda d: noisy(d, nt_type="smoothgrad_sq", nt_samples_batch_size=2),
    "language model": in_language_model,
    "language model, one pass": lambda d: in_language_model(d, one_pass=True),
    "explanation": explained,
}


def tensors(result):
    return [part.detach().cpu() for part in (result if isinstance(result, (tuple, list)) else (result,))]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_cpu(kind):
    got, wanted = tensors(KINDS[kind](DEVICE)), tensors(KINDS[kind]("cpu"))
    assert len(got) == len(wanted)
    rtol = 1e-5 if "language" in kind else 1e-9  # Llama norms, rotates and weighs in float32
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol / 100)


def calls_on_the_device():
    """The calls of tests/lean/calls.py with their parameters on the device."""
    spec = importlib.util.find_spec("tests.lean.calls")
    module = importlib.util.module_from_spec(spec)
    with torch.device(DEVICE):
        spec.loader.exec_module(module)
    module._parameter = lambda *shape: nn.Parameter(torch.randn(shape, dtype=torch.float64, device=DEVICE))
    return module.CALLS


@pytest.mark.parametrize("name", calls.CALLS)
def test_lean_calls_equal_plain_ones(name):
    shape, function = calls_on_the_device()[name]
    leaf = torch.randn(shape, dtype=torch.float64, device=DEVICE).requires_grad_()
    grads = []
    for mode in (LeanMode(), None):
        torch.manual_seed(1)
        if mode is None:
            output = function(leaf * 1)
        else:
            with mode:
                output = function(leaf * 1)
            assert sum(mode.swapped.values()) == 1
        weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=DEVICE).reshape(output.shape)
        grads.append((output.detach(), *torch.autograd.grad((output * weight).sum(), leaf)))
    for lean, plain in zip(*grads, strict=True):
        torch.testing.assert_close(lean, plain, rtol=1e-11, atol=1e-12)


def test_a_model_of_another_dtype():
    for dtype in (torch.float32, torch.bfloat16):
        network = copy.deepcopy(net(DEVICE)).to(dtype)
        got = igfast.IntegratedGradients(network).attribute(rows(DEVICE).to(dtype), target=1)
        assert relative_difference(got.cpu().double(), fixed("cpu")) <= (1e-5 if dtype == torch.float32 else 0.1)
