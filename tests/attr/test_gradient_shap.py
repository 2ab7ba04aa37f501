"""GradientSHAP has Captum's draws and numbers, in chunks."""

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

import igfast
from igfast.attr import noise_tunnel
from igfast.run.plan import ChunkLimits


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()


G = torch.Generator().manual_seed(0)
X, DATA = (torch.randn(n, 6, generator=G, dtype=torch.float64) for n in (3, 7))


def both(name, *of_constructor, call):
    """What igfast's class and Captum's return for the same seeds."""
    found = []
    for library in (igfast, captum.attr):
        torch.manual_seed(1)
        np.random.seed(1)
        found.append(call(getattr(library, name)(*of_constructor)))
        found.append((torch.rand(1), np.random.random()))
    assert found[1] == found[3], "the generators have advanced alike"
    return found[0], found[2]


def close(found, expected, rtol=1e-6, atol=1e-9):
    if isinstance(found, (tuple, list)):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other, rtol, atol)
        return
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize("options", [{}, {"stdevs": 0.3}, {"n_samples": 25, "return_convergence_delta": True}])
def test_inputs(multiply, options):
    def call(explainer):
        return explainer.attribute(X, DATA, target=1, **options)

    close(*both("GradientShap", net(), multiply, call=call))


def test_the_model_is_read_at_call_time():
    model, other = net(), nn.Sequential(nn.Linear(6, 16), nn.Sigmoid(), nn.Linear(16, 3)).double()

    def renewed(explainer):
        explainer.forward_func = other
        if hasattr(explainer, "layer"):
            explainer.layer = other[1]
        return explainer

    close(*both("GradientShap", model, call=lambda explainer: renewed(explainer).attribute(X, DATA, target=1)))
    close(*both("LayerGradientShap", model, model[1], call=lambda e: renewed(e).attribute(X, DATA, target=1)))
    close(*both("NeuronGradientShap", model, model[1], call=lambda e: renewed(e).attribute(X, 3, DATA)))


def test_several_inputs_arguments_and_targets():
    model = net()

    def forward(a, b, scale):
        return model(torch.cat([a, b], dim=1)) * scale

    def call(explainer):
        return explainer.attribute(
            (X[:, :2], X[:, 2:]),
            (DATA[:, :2], DATA[:, 2:]),
            n_samples=8,
            stdevs=(0.1, 0.2),
            target=[0, 2, 1],
            additional_forward_args=torch.tensor([[1.0], [2.0], [3.0]]).double(),
            return_convergence_delta=True,
        )

    close(*both("GradientShap", forward, call=call))


@pytest.mark.parametrize("make", [lambda: DATA, lambda inputs: DATA + inputs.mean()])
def test_baselines_from_a_function(make):
    close(*both("GradientShap", net(), call=lambda explainer: explainer.attribute(X, make, target=1)))


def test_float32():
    found, expected = both(
        "GradientShap", net().float(), call=lambda e: e.attribute(X.float(), DATA.float(), n_samples=20, target=1)
    )
    assert found.dtype == torch.float32
    close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("at_input", [False, True])
@pytest.mark.parametrize("multiply", [True, False])
def test_a_layer(at_input, multiply):
    model = net()

    def call(explainer):
        return explainer.attribute(
            X,
            DATA,
            n_samples=9,
            stdevs=0.1,
            target=1,
            return_convergence_delta=True,
            attribute_to_layer_input=at_input,
        )

    close(*both("LayerGradientShap", model, model[2 if at_input else 0], None, multiply, call=call))


def test_a_layer_beside_a_branch_that_goes_around_it():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(6, 6).double(), nn.Linear(6, 3).double()

        def forward(self, x, scale):
            return self.head(self.body(x).tanh() * x * scale)

    model = Around()
    scale = torch.tensor([[1.0], [2.0], [3.0]]).double()

    def call(explainer):
        return explainer.attribute(X, DATA, n_samples=9, target=1, additional_forward_args=scale)

    close(*both("LayerGradientShap", model, model.body, call=call))


class Windows(nn.Module):
    """Cuts each example in two, which its layer takes as two entries; and joins what becomes of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 4).double(), nn.Linear(8, 3).double()

    def forward(self, x):
        return self.head(self.body(x.reshape(-1, 3)).tanh().reshape(len(x), 8))


class Pair(nn.Module):
    """Has a layer that gives two tensors."""

    class Two(nn.Module):
        def forward(self, x):
            return x * 2, x[:, :2].exp()

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = self.Two(), nn.Linear(8, 3).double()

    def forward(self, x):
        return self.head(torch.cat(self.body(x), dim=1).tanh())


@pytest.fixture
def groups_of_two(monkeypatch):
    """Has layers attributed for two samples of each of the examples X at a time."""
    monkeypatch.setattr("igfast.run.plan.CPU", ChunkLimits(first=2 * X.nbytes, largest=1, cheap=1, share=1))


@pytest.mark.usefixtures("groups_of_two")
@pytest.mark.parametrize("target", [1, [0, 2, 1], torch.tensor([0, 2, 1]), [(0,), (2,), (1,)]])
def test_a_layer_in_groups_of_samples(target):
    model, scale, rows = net(), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), []

    def scaled(x, scale):
        rows.append(len(x))
        return model(x * scale[:, None])

    def call(explainer):
        options = {"target": target, "additional_forward_args": scale, "return_convergence_delta": True}
        return explainer.attribute(X, DATA, n_samples=5, stdevs=0.1, **options)

    close(*both("LayerGradientShap", scaled, model[0], call=call))
    assert max(rows[: rows.index(15)]) == 6  # 15 is Captum's


@pytest.mark.usefixtures("groups_of_two")
@pytest.mark.parametrize("make", [Windows, Pair])
def test_layers_of_several_entries_or_tensors_in_groups(make):
    model = make()
    close(*both("LayerGradientShap", model, model.body, call=lambda e: e.attribute(X, DATA, n_samples=5, target=1)))


@pytest.mark.filterwarnings("ignore:.*so each step went through the model as a whole")  # the gradients' chunks
@pytest.mark.usefixtures("groups_of_two")
@pytest.mark.parametrize("of", ["values", "outputs"])
def test_a_layer_whose_rows_belong_together_takes_all_samples_at_once(of):
    model = net()

    def mixes(x):
        values = model(x - x.mean(0) if of == "values" else x)
        return values - values.mean(0) if of == "outputs" else values

    def call(explainer):
        return explainer.attribute(X, DATA, n_samples=5, target=1)

    with pytest.warns(igfast.IgfastWarning, match="all samples went through the model at once"):
        close(*both("LayerGradientShap", mixes, model[0], call=call))


@pytest.mark.filterwarnings("ignore:.*so each step went through the model as a whole")
@pytest.mark.usefixtures("groups_of_two")
def test_a_layer_of_a_model_that_takes_all_samples_alone():
    model = net()

    def fixed(x):
        return model(x.view(15, 6))

    def call(explainer):
        return explainer.attribute(X, DATA, n_samples=5, target=1)

    with pytest.warns(igfast.IgfastWarning, match="all samples went through the model at once"):
        close(*both("LayerGradientShap", fixed, model[0], call=call))


@pytest.mark.parametrize("selector", [3, lambda value: value[:, 2]])
def test_a_neuron(selector):
    model = net()

    def call(explainer):
        return explainer.attribute(X, selector, DATA, n_samples=9, stdevs=0.1)

    close(*both("NeuronGradientShap", model, model[0], call=call))


def test_rows_that_belong_together():
    model = net()

    def call(explainer):
        return explainer.attribute(X, DATA, n_samples=4, stdevs=0.1)

    def mixes(x):
        return (model(x)[:, 1] - model(x)[:, 1].mean() / 2) ** 2

    close(*both("GradientShap", mixes, call=call))

    def bag(x):
        return model(x).max(dim=0).values[:1]

    close(*both("GradientShap", bag, call=call))


def test_samples_go_in_chunks():
    rows = []

    class Network(nn.Sequential):
        def forward(self, x):
            rows.append((len(x), torch.is_grad_enabled()))
            return super().forward(x)

    torch.manual_seed(0)
    network = Network(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 62 * 62, 4))
    images, data = torch.rand(1, 3, 64, 64), torch.rand(5, 3, 64, 64)
    igfast.GradientShap(network).attribute(images, data, n_samples=200, target=0)
    assert max(n for n, _ in rows) <= 60
    assert rows[0] == (1, False)  # the caller's own call


@pytest.mark.parametrize("name", ["GradientShap", "NeuronGradientShap"])
def test_small_chunks_have_the_samples_of_each_example(name, monkeypatch):
    monkeypatch.setattr("igfast.run.plan.CPU", ChunkLimits(first=1, largest=6 * X[0].nbytes, cheap=2**30, share=1))
    model, scale = net(), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    layer, selector = ((model[0],), (1,)) if name == "NeuronGradientShap" else ((), ())

    def scaled(x, scale):
        return model(x * scale[:, None])

    def call(explainer):
        options = {"target": [1, 0, 2], "return_convergence_delta": True} if name == "GradientShap" else {}
        options |= {"n_samples": 5, "stdevs": 0.1, "additional_forward_args": scale}
        return explainer.attribute(X, *selector, DATA, **options)

    close(*both(name, scaled, *layer, call=call))


def test_rows_that_are_seen_to_belong_together(monkeypatch):
    monkeypatch.setattr("igfast.run.plan.CPU", ChunkLimits(first=1, largest=6 * X[0].nbytes, cheap=2**30, share=1))
    model = net()

    def mixes(x):
        return (model(x)[:, 1] - model(x)[:, 1].mean() / 2) ** 2

    with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
        close(*both("GradientShap", mixes, call=lambda explainer: explainer.attribute(X, DATA, n_samples=4)))


def test_a_replaced_gradient_func_is_captums():
    model, seen = net(), []

    def gradients(forward_func, inputs, target_ind=None, additional_forward_args=None):
        seen.append(len(inputs[0]))
        return tuple(torch.ones_like(x) for x in inputs)

    explainer = igfast.GradientShap(model)
    explainer.gradient_func = gradients
    explainer.attribute(X, DATA, n_samples=2, target=0)
    assert seen == [6]


def test_patched():
    with igfast.patch_captum():
        assert captum.attr.GradientShap is igfast.GradientShap
        assert captum.attr.LayerGradientShap is igfast.LayerGradientShap
        assert captum.attr.NeuronGradientShap is igfast.NeuronGradientShap
        captum.attr.GradientShap(net()).attribute(X, DATA, target=0)
    assert captum.attr.GradientShap is not igfast.GradientShap
    assert issubclass(igfast.GradientShap, captum.attr.GradientShap)
    assert noise_tunnel._TUNNEL is captum.attr.NoiseTunnel


@pytest.mark.parametrize("n_samples", [0, 1.5, True])
def test_bad_numbers_of_samples(n_samples):
    with pytest.raises(igfast.ArgumentError, match="n_samples must be an integer of at least 1"):
        igfast.GradientShap(net()).attribute(X, DATA, n_samples=n_samples, target=0)


def test_bad_input():
    with pytest.raises(igfast.TargetError, match="out of range"):
        igfast.GradientShap(net()).attribute(X, DATA, target=7)
    with pytest.raises(igfast.ArgumentError, match="got a list"):
        igfast.LayerGradientShap(net(), [net()[0]])
    with pytest.raises(igfast.ArgumentError, match="lean"):
        igfast.GradientShap(net(), lean="sometimes")
    with pytest.raises(igfast.ArgumentTypeError, match="forward_func must be callable"):
        igfast.NeuronGradientShap(3, net()[0])


@pytest.mark.parametrize("name", ["GradientShap", "NeuronGradientShap"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bool])
def test_inputs_of_a_narrower_dtype_become_what_the_noise_makes_of_them(name, dtype):
    model = net().float()
    layer, selector = ((model[0],), (1,)) if name == "NeuronGradientShap" else ((), ())
    target = {} if layer else {"target": 1}
    inputs = X.to(dtype)
    found = both(name, model, *layer, call=lambda e: e.attribute(inputs, *selector, DATA.float(), **target))
    close(*found, rtol=1e-4, atol=1e-5)
