"""LayerIntegratedGradients against a naive loop and against Captum, and what it refuses."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import captum.attr
import pytest
import torch
from torch import nn

import igfast
from igfast.model.tap import LayerTap
from tests import models
from tests.attr import layer_models
from tests.attr.layer_models import from_layer, naive, values_of
from tests.oracle import relative_difference

IDS = torch.tensor([[5, 3, 9, 1, 2, 2], [7, 7, 4, 0, 8, 6]])


def image_case(name):
    network, image = models.transformers_model(name)
    layers = {
        "resnet": lambda: network.model.resnet.encoder.stages[1].layers[0].layer[0].convolution,
        "vit": lambda: network.model.vit.embeddings.patch_embeddings,
    }
    x = torch.cat([image, image.flip(3)])
    return network, layers[name](), x, torch.zeros_like(x), ()


def text_case(name):
    network, layer = getattr(layer_models, name)()
    return network, layer, IDS, torch.zeros_like(IDS), (torch.ones_like(IDS),)


def bilstm_case():
    network = layer_models.BiLSTM()
    return network, network.embedding, IDS, torch.full_like(IDS, 1), ()


class Masked(nn.Module):
    """A transformers classifier with the attention mask as its second argument."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask):
        return self.model.model(ids, attention_mask=mask).logits


CASES = {
    "bilstm": bilstm_case,
    "bert": lambda: text_case("bert"),
    "distilbert": lambda: text_case("distilbert"),
    "vit patches": lambda: image_case("vit"),
    "resnet conv": lambda: image_case("resnet"),
}


@pytest.mark.parametrize("method", ["gausslegendre", "riemann_trapezoid"])
@pytest.mark.parametrize("size", [None, 1, 3, 4])
@pytest.mark.parametrize(
    ("name", "at_input"), [*((name, False) for name in CASES), ("vit patches", True), ("resnet conv", True)]
)
def test_parity(name, at_input, size, method):
    network, layer, x, baseline, args = CASES[name]()
    if args:
        network = Masked(network)
    wanted = naive(
        lambda *values: from_layer(network, layer, x, *args, at_input=at_input)(*values)[:, 1],
        values_of(network, layer, x, *args, at_input=at_input),
        values_of(network, layer, baseline, *args, at_input=at_input),
        7,
        method,
    )
    options = {"method": method, "attribute_to_layer_input": at_input, "additional_forward_args": args or None}
    explainer = igfast.LayerIntegratedGradients(network, layer, lean=True)
    got, delta = explainer.attribute(
        x, baseline, 1, n_steps=7, internal_batch_size=size, return_convergence_delta=True, **options
    )
    assert relative_difference(got, wanted[0]) <= 1e-12
    captums, captums_delta = captum.attr.LayerIntegratedGradients(network, layer).attribute(
        x, baseline, 1, n_steps=7, return_convergence_delta=True, **options
    )
    assert relative_difference(got, captums) <= (1e-7 if method == "gausslegendre" else 1e-5)
    torch.testing.assert_close(delta, captums_delta, rtol=0, atol=1e-5 * float(captums.abs().sum()))
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_a_layer_with_several_tensors():
    network, x = layer_models.Tuples(), torch.randn(3, 6, dtype=torch.float64)
    for at_input in (False, True):
        got = igfast.LayerIntegratedGradients(network, network.pair, lean=True).attribute(
            x, target=2, n_steps=9, attribute_to_layer_input=at_input
        )
        wanted = naive(
            lambda *v, at=at_input: from_layer(network, network.pair, x, at_input=at)(*v)[:, 2],
            values_of(network, network.pair, x, at_input=at_input),
            values_of(network, network.pair, x * 0, at_input=at_input),
            9,
        )
        assert isinstance(got, tuple)
        assert len(got) == 2
        assert relative_difference(got, wanted) <= 1e-12


@pytest.mark.filterwarnings("ignore:Multiple layers provided")
def test_a_list_of_layers():
    network, types = layer_models.TwoEmbeddings(), torch.zeros_like(IDS)
    layers = [network.words, network.types]
    mask, inputs = torch.ones_like(IDS, dtype=torch.float64), (IDS, types)
    results = []
    for library in (igfast, captum.attr):
        results.append(
            library.LayerIntegratedGradients(network, layers).attribute(
                inputs, (0, 1), 3, (mask, 2.0), n_steps=20, return_convergence_delta=True
            )
        )
    (got, delta), (wanted, wanted_delta) = results
    assert isinstance(got, list)
    assert [g.shape for g in got] == [(2, 6, 6)] * 2
    assert relative_difference(tuple(got), tuple(wanted)) <= 1e-7
    torch.testing.assert_close(delta, wanted_delta, rtol=0, atol=1e-7)


def test_windows_of_an_image_are_several_entries_per_example():
    import transformers as tf

    config = tf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[2], num_heads=[2], window_size=4)
    network = models.Logits(tf.SwinForImageClassification(config)).double().eval()
    layer = network.model.swin.encoder.layers[0].blocks[0].attention
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    got = igfast.LayerIntegratedGradients(network, _first_linear(layer)).attribute(x, target=1, n_steps=6)
    wanted = captum.attr.LayerIntegratedGradients(network, _first_linear(layer)).attribute(x, target=1, n_steps=6)
    assert got.shape == wanted.shape
    assert got.shape[0] == 8  # 4 windows of each image
    assert relative_difference(got, wanted) <= 1e-7


def _first_linear(module):
    return next(m for m in module.modules() if isinstance(m, nn.Linear))


def test_entries_that_are_not_side_by_side_go_in_whole_steps():
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3).double()

        def forward(self, x):  # (batch, 2, 3); the layer sees (2 * batch, 3), all first parts before all second ones
            parts = self.inner(x.transpose(0, 1).flatten(0, 1)).tanh().unflatten(0, (2, -1))
            return parts[0] * parts[1] ** 2

    network, x = Swapped(), torch.randn(3, 2, 3).double()
    explainer = igfast.LayerIntegratedGradients(network, network.inner)
    got, delta, report = explainer.attribute(x, target=0, return_convergence_delta=True, return_report=True)
    theirs = captum.attr.LayerIntegratedGradients(network, network.inner)
    assert relative_difference(got, theirs.attribute(x, target=0, internal_batch_size=6)) <= 1e-7
    assert delta.shape == (1,)
    assert abs(float(delta)) < 1e-9
    assert "not side by side" in report.notes[0]


def test_nothing_before_the_layer_is_recorded():
    seen = []

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()

        def forward(self, x):
            before = self.first(x)
            after = self.second(before)
            seen.append((before.requires_grad, after.requires_grad, torch.is_grad_enabled()))
            return after

    network, x = Network(), torch.randn(2, 3, dtype=torch.float64)
    seen.clear()
    igfast.LayerIntegratedGradients(network, network.first).attribute(x, target=0, n_steps=3)
    assert (True, True, True) in seen
    seen.clear()
    igfast.LayerIntegratedGradients(network, network.second).attribute(x, target=0, n_steps=3)
    assert set(seen) == {(False, True, True), (False, False, False)}  # the latter to read the layer's values


def test_a_model_that_sets_grad_mode_around_the_layer():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()

        def forward(self, x):
            with torch.enable_grad():
                aside = (h := self.first(x)).sum(1, keepdim=True)
            return torch.tanh(self.second(h)) + aside  # outside of it, grad mode is what it was before

    network, x = Network(), torch.randn(2, 3, dtype=torch.float64)
    got = igfast.LayerIntegratedGradients(network, network.first).attribute(x, target=0, n_steps=8)
    wanted = captum.attr.LayerIntegratedGradients(network, network.first).attribute(x, target=0, n_steps=8)
    assert relative_difference(got, wanted.detach()) <= 1e-7


def test_an_in_place_activation_after_the_layer():
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    got = igfast.LayerIntegratedGradients(network, network[0]).attribute(x, target=0, n_steps=8)
    wanted = naive(
        lambda h: network[2](torch.relu(h))[:, 0], values_of(nn.Sequential(network[0]), network[0], x),
        values_of(nn.Sequential(network[0]), network[0], x * 0), 8,
    )  # fmt: skip
    assert relative_difference(got, wanted[0]) <= 1e-12


def test_unused_values_need_materialize_grads():
    class Ignores(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.head = layer_models.Pair(), nn.Linear(4, 2)
            self.double()

        def forward(self, x):
            return self.head(self.pair(x, x)[0])

    network, x = Ignores(), torch.randn(2, 5, dtype=torch.float64)
    explainer = igfast.LayerIntegratedGradients(network, network.pair)
    with pytest.raises(igfast.InputError, match=r"tensor 1 of the layer's output .*materialize_grads"):
        explainer.attribute(x, target=0)
    with pytest.raises(igfast.InputError, match="does not influence the output"):
        explainer.attribute(x, target=0, grad_kwargs={"allow_unused": False})
    got = explainer.attribute(x, target=0, grad_kwargs={"allow_unused": True, "materialize_grads": True})
    assert not got[1].any()
    assert got[0].any()
    with pytest.raises(igfast.ArgumentError, match=r"grad_kwargs may have .* got \['is_grads_batched'\]"):
        explainer.attribute(x, target=0, grad_kwargs={"is_grads_batched": True})


class Interrupts(nn.Module):
    """Raises on the n-th call."""

    def __init__(self, error, n):
        super().__init__()
        self.layer, self.error, self.calls, self.n = nn.Linear(3, 4).double(), error, 0, n

    def forward(self, x):
        self.calls += 1
        if self.calls >= self.n:
            self.layer(x)
            raise self.error
        return self.layer(x)


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", ["layer", "neuron"])
def test_hooks_are_removed_after_an_exception(kind, n, error):
    network = Interrupts(error, n)
    of = igfast.NeuronIntegratedGradients if kind == "neuron" else igfast.LayerIntegratedGradients
    explainer = of(network, network.layer)
    if n == 1:
        network.layer.forward = lambda x: (_ for _ in ()).throw(error)
    with pytest.raises(type(error)):
        explainer.attribute(torch.randn(2, 3, dtype=torch.float64), 0, **({} if kind == "neuron" else {"target": 0}))
    assert not network.layer._forward_hooks
    assert not network.layer._forward_pre_hooks
    assert torch.is_grad_enabled()


def test_hooks_are_removed_after_a_bad_target():
    network = layer_models.BiLSTM()
    with pytest.raises(igfast.TargetError, match="out of range"):
        igfast.LayerIntegratedGradients(network, network.embedding).attribute(IDS, target=9)
    assert not network.embedding._forward_hooks


class Repeats(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3).double()

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


@pytest.mark.parametrize(
    ("layer", "inputs", "error", "text"),
    [
        (lambda n: nn.Linear(3, 3), {}, igfast.LayerError, "layer Linear was not reached"),
        (lambda n: "embedding", {}, igfast.LayerError, "layer must be a torch.nn.Module or a list"),
        (lambda n: n.embedding, {"attribute_to_layer_input": True}, igfast.LayerError, "is a int64 tensor of shape"),
        (lambda n: n.lstm, {}, igfast.LayerError, "element 1 of the output of layer LSTM is a tuple"),
        (lambda n: n.embedding, {"inputs": [IDS]}, igfast.InputTypeError, "inputs must be a tensor or a tuple"),
        (lambda n: n.embedding, {"inputs": IDS[0, 0]}, igfast.InputError, r"inputs\[0\] must have the examples"),
        (lambda n: n.embedding, {"baselines": IDS[:, :3]}, igfast.BaselineError, r"baselines\[0\] must have the shape"),
        (lambda n: n.embedding, {"baselines": (0, 0)}, igfast.BaselineError, "in a tuple of length 1; got 2"),
        (lambda n: n.embedding, {"baselines": "pad"}, igfast.ArgumentTypeError, "must be a tensor or a number"),
        (lambda n: n.embedding, {"inputs": IDS[:0]}, igfast.ArgumentError, "at least one example"),
        (lambda n: n.embedding, {"n_steps": 0}, igfast.ArgumentError, "n_steps"),
    ],
)
def test_bad_input(layer, inputs, error, text):
    network = layer_models.BiLSTM()
    with pytest.raises(error, match=text):
        igfast.LayerIntegratedGradients(network, layer(network)).attribute(**{"inputs": IDS, "target": 0, **inputs})
    assert not network.embedding._forward_hooks


def test_a_layer_that_is_called_twice_is_refused():
    network = Repeats()
    with pytest.raises(igfast.LayerError, match="called more than once in one forward pass"):
        igfast.LayerIntegratedGradients(network, network.layer).attribute(torch.randn(2, 3).double(), target=0)


def test_ten_threads_share_a_model_and_an_instance():
    network = layer_models.BiLSTM()
    explainer = igfast.LayerIntegratedGradients(network, network.embedding)
    inputs = [torch.randint(0, 30, (2, 6), generator=torch.Generator().manual_seed(i)) for i in range(10)]

    def attribute(ids):
        return explainer.attribute(ids, target=1, n_steps=15, internal_batch_size=4)

    serial = [attribute(ids) for ids in inputs]
    with ThreadPoolExecutor(10) as threads:
        parallel = list(threads.map(attribute, inputs))
    assert all(torch.equal(a, b) for a, b in zip(serial, parallel, strict=True))
    assert not network.embedding._forward_hooks


def test_data_parallel_on_the_cpu():
    network = layer_models.BiLSTM()
    parallel = nn.DataParallel(network)
    got = igfast.LayerIntegratedGradients(parallel, parallel.module.embedding).attribute(IDS, target=1, n_steps=6)
    wanted = igfast.LayerIntegratedGradients(network, network.embedding).attribute(IDS, target=1, n_steps=6)
    assert torch.equal(got, wanted)


def test_not_multiplied_by_inputs():
    network = layer_models.BiLSTM()
    results = [
        library.LayerIntegratedGradients(network, network.embedding, multiply_by_inputs=False).attribute(
            IDS, target=1, n_steps=6
        )
        for library in (igfast, captum.attr)
    ]
    assert relative_difference(*results) <= 1e-7


def test_only_the_ends_of_the_path_are_kept():
    # The layer's values at all steps would be n_steps times as many.
    network = layer_models.BiLSTM()
    kept = []
    original = LayerTap.read

    def read(self, call):
        result = original(self, call)
        kept.append(sum(v.numel() for values in result[0] for v in values))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerTap, "read", read)
        igfast.LayerIntegratedGradients(network, network.embedding).attribute(IDS, target=1, n_steps=40)
    assert kept == [IDS.numel() * 6] * 2


def test_a_model_that_is_its_own_layer_is_forgotten_with_its_last_use():
    network = nn.Linear(3, 2).double()
    igfast.LayerIntegratedGradients(network, network).attribute(torch.randn(2, 3).double(), target=0, n_steps=3)
    igfast.NeuronIntegratedGradients(network, network).attribute(torch.randn(2, 3).double(), 0, n_steps=3)
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None
