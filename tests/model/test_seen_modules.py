"""Models that a function holds in lists, in comprehensions or hidden, and models that change between calls."""

import sys
import threading
import warnings

import captum.attr
import pytest
import torch
from torch import nn

import igfast
from igfast.model.facts import _key_of_part
from igfast.model.modules import modules_behind, parts_behind, weights_behind, why_compiled
from tests.oracle import relative_difference

X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double().eval()


class Hides(nn.Module):
    """A module that keeps another one out of its parts."""

    def __init__(self, held):
        super().__init__()
        self.head, self.held = nn.Linear(3, 2).double(), [held]

    def forward(self, x):
        return self.head(x) + self.held[0](x)


class Holder:
    def __init__(self, models):
        self.models = models

    def __call__(self, x):
        return sum(model(x) for model in self.models)


_MODEL = network()


def _in_a_comprehension(x):
    return sum([_MODEL(x + noise) for noise in (0.0, 0.1)])


WAYS = {
    "list": lambda model, models=None: lambda x, models=(models or [model]): sum(one(x) for one in models),
    "dict": lambda model: (lambda models: lambda x: models["one"](x))({"one": model}),
    "object": lambda model: Holder([model]),
    "hidden": lambda model: Hides(model),
    "hidden in a function": lambda model: (lambda holder: lambda x: holder(x))(Hides(model)),
}


@pytest.mark.parametrize("way", WAYS)
def test_models_in_lists_are_seen(way):
    model = network()
    function = WAYS[way](model)
    assert set(model.modules()) <= set(parts_behind(function))
    assert {id(weight) for weight in model.parameters()} <= {id(weight) for weight in weights_behind(function)}
    _is_looked_at_anew(function, model)


def test_names_inside_a_comprehension_are_seen():
    assert modules_behind(_in_a_comprehension) == [_MODEL]
    _is_looked_at_anew(_in_a_comprehension, _MODEL)
    _MODEL.eval()


def _is_looked_at_anew(function, model):
    """Batch norm in training mode mixes examples: after a first call, that must be seen, and statistics put back."""
    explainer = igfast.IntegratedGradients(function)
    explainer.attribute(X, target=0)
    model.train()
    before = model[1].running_mean.clone()
    with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
        got = explainer.attribute(X, target=0)
    assert torch.equal(before, model[1].running_mean)
    wanted = captum.attr.IntegratedGradients(function).attribute(X, target=0, internal_batch_size=len(X))
    assert relative_difference(got, wanted) <= 1e-6


class Mixes(nn.Module):
    """Mixes the examples by as much as an argument, a flag or a hook says."""

    def __init__(self):
        super().__init__()
        self.mixes = False

    def forward(self, x, by=0.0):
        return torch.tanh(self.mix(x, by + 3.0 * self.mixes))

    def mix(self, x, by):
        return x + by * x.mean(0)


def wanted_of(by):
    explainer = captum.attr.IntegratedGradients(Mixes())
    return explainer.attribute(X, target=0, additional_forward_args=by, internal_batch_size=len(X))


def test_a_number_as_a_tensor_is_looked_at():
    explainer = igfast.IntegratedGradients(Mixes())
    explainer.attribute(X, target=0, additional_forward_args=torch.tensor(0.0))
    with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
        got = explainer.attribute(X, target=0, additional_forward_args=torch.tensor(3.0))
    assert relative_difference(got, wanted_of(3.0)) <= 1e-6


def _by_a_flag(model):
    model.mixes = True


def _by_its_forward(model):
    model.forward = lambda x: torch.tanh(model.mix(x, 3.0))


@pytest.mark.parametrize("change", [_by_a_flag, _by_its_forward])
def test_a_model_that_is_changed_in_another_way(change):
    model = Mixes()
    explainer = igfast.IntegratedGradients(model)
    explainer.attribute(X, target=0)
    change(model)
    with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
        got = explainer.attribute(X, target=0)
    assert relative_difference(got, wanted_of(3.0)) <= 1e-6


def test_global_hooks_are_looked_at():
    model = nn.Sequential(nn.Tanh())
    explainer = igfast.IntegratedGradients(model)
    explainer.attribute(X, target=0)
    of_modules = torch.nn.modules.module
    with of_modules.register_module_forward_pre_hook(lambda _, args: (args[0] + 3.0 * args[0].mean(0),)):
        wanted = captum.attr.IntegratedGradients(model).attribute(X, target=0, internal_batch_size=len(X))
        with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
            got = explainer.attribute(X, target=0)
    assert relative_difference(got, wanted) <= 1e-6


SETTINGS = {"pools": False}


def test_a_setting_of_a_function_is_looked_at():
    layer = nn.Linear(5, 4).double()

    def function(x):
        values = layer(x).tanh()
        return values.mean(1) if SETTINGS["pools"] else values

    x = torch.randn(1, 3, 5, dtype=torch.float64)
    explainer = igfast.IntegratedGradients(function)
    explainer.attribute(x, target=(1, 2))
    SETTINGS["pools"] = True
    try:
        attributions, delta = explainer.attribute(x, target=2, return_convergence_delta=True)
    finally:
        SETTINGS["pools"] = False
    assert attributions.shape == x.shape
    assert delta.abs().max() <= 1e-6


def test_numbers_of_groups_are_looked_at():
    class Groups(nn.Module):
        def forward(self, x, group):
            return torch.tanh(x - (group[:, None] == group).double() @ x / 4)

    explainer = igfast.IntegratedGradients(Groups())
    explainer.attribute(X, target=0, additional_forward_args=torch.arange(4), internal_batch_size=2)
    together = torch.tensor([0, 1, 0, 1])
    with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
        got = explainer.attribute(X, target=0, additional_forward_args=together, internal_batch_size=2)
    reference = captum.attr.IntegratedGradients(Groups())
    wanted = reference.attribute(X, target=0, additional_forward_args=together, internal_batch_size=4)
    assert relative_difference(got, wanted) <= 1e-6


def test_other_values_of_a_mask_are_no_other_kind_of_call():
    n_calls = []

    def function(x, mask):
        n_calls.append(1)
        return (x * mask).tanh()

    explainer, counts = igfast.IntegratedGradients(function), []
    for mask in (torch.ones(4, 3), torch.zeros(4, 3), torch.eye(4)[:, :3]):
        n_calls.clear()
        explainer.attribute(X, target=0, additional_forward_args=mask.double())
        counts.append(len(n_calls))
    assert counts[1] == counts[2] < counts[0]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("way", ["function", "forward", "list", "module"])
def test_compiled_code_is_left_as_it_was_found(way, whole):
    runs = []

    def backend(graph, _):
        return lambda *args: runs.append(1) or graph.forward(*args)

    torch._dynamo.reset()
    function = net = Net().eval()
    if way == "forward":
        net.forward = torch.compile(net.forward, backend=backend, fullgraph=whole)
    elif way == "module":
        net.compile(backend=backend, fullgraph=whole)
    else:
        code = torch.compile(net, backend=backend, fullgraph=whole)
        function = (lambda x: code(x) * 1.0) if way == "function" else Holder([code])
    assert "compiled" in why_compiled(function)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        function(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", igfast.IgfastWarning)
        for n_steps in range(3, 8):
            igfast.IntegratedGradients(function).attribute(x, target=0, n_steps=n_steps)
    runs.clear()
    with torch.no_grad():
        function(torch.randn(7, 3, 8, 8))
    assert len(runs) == 1  # one graph: nothing was broken up
    torch._dynamo.reset()


def test_hooks_that_other_threads_add_and_remove():
    layer, stop = nn.Linear(2, 2), []
    for _ in range(5):
        layer.register_forward_hook(lambda *_: None)

    def toggle():
        while not stop:
            layer.register_forward_hook(lambda *_: None).remove()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=toggle) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(20_000):
            _key_of_part(layer, {})
    finally:
        stop.append(1)
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
