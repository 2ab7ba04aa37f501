"""A call leaves everything as it found it."""

import functools
import gc
import threading

import captum.attr
import pytest
import torch
from torch import nn

import igfast
from tests import models
from tests.oracle import relative_difference


def batch_norm_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).double()


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


class Trainer:
    """An object that has a network."""

    def __init__(self, network):
        self.network = network

    def predict(self, x):
        return self.network(x)

    def __call__(self, x):
        return self.network(x)


def of_an_object(network):
    trainer = Trainer(network)
    return lambda x: trainer.network(x)


def of_a_global_name(network):
    names = {"network": network}
    exec("def forward(x): return network(x)", names)
    return names["forward"]


WRAPPED = [
    lambda m: m,
    lambda m: m.forward,
    lambda m: functools.partial(m.forward),
    lambda m: lambda x: m(x),
    lambda m: lambda x, network=m: network(x),
    lambda m: lambda x, *, network=m: network(x),
    lambda m: functools.partial(lambda network, x: network(x), m),
    lambda m: functools.partial(lambda x, network: network(x), network=m),
    of_a_global_name,
    lambda m: Trainer(m),
    lambda m: Trainer(m).predict,
    of_an_object,
]


@pytest.mark.filterwarnings("ignore:forward_func returns another output")
@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_model_that_changes_its_mode_is_looked_at_anew(wrap):
    network, x = batch_norm_network().eval(), torch.randn(8, 3, dtype=torch.float64)
    function = wrap(network)
    igfast.IntegratedGradients(function).attribute(x, target=0)
    network.train()
    with pytest.warns(igfast.IgfastWarning, match="depends on the others in its batch"):
        igfast.IntegratedGradients(function).attribute(x, target=0)


def test_another_model_under_the_same_name_is_looked_at_anew():
    place, x = Trainer(models.mlp()), torch.randn(8, 3, dtype=torch.float64)

    def function(x):
        return place.network(x)

    igfast.IntegratedGradients(function).attribute(x, target=0)
    place.network = nn.Sequential(*models.mlp(), nn.BatchNorm1d(4, track_running_stats=False).double())
    with pytest.warns(igfast.IgfastWarning, match="depends on the others in its batch"):
        igfast.IntegratedGradients(function).attribute(x, target=0)


@pytest.mark.parametrize("wrap", WRAPPED)
def test_running_statistics_are_put_back(wrap):
    network, x = batch_norm_network().train(), torch.randn(8, 3, dtype=torch.float64)
    before = snapshot(network)
    with pytest.warns(igfast.IgfastWarning, match="depends on the others in its batch"):
        igfast.IntegratedGradients(wrap(network)).attribute(x, target=0)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_running_statistics_are_put_back_after_an_exception():
    network = batch_norm_network().train()
    before = snapshot(network)
    with pytest.raises(igfast.TargetError):
        igfast.IntegratedGradients(network).attribute(torch.randn(8, 3, dtype=torch.float64), target=7)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Buffers(nn.Module):
    """A buffer that is expanded, one that takes part in graphs, and one that each call replaces."""

    def __init__(self):
        super().__init__()
        self.register_buffer("expanded", torch.ones(1, 3, dtype=torch.float64).expand(2, 3))
        self.register_buffer("scale", torch.full((3,), 2.0, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return x.pow(2) * self.scale * self.expanded[:1]


def test_buffers_that_a_call_does_not_write_are_not_written():
    network, x = Buffers().train(), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    loss = network(x).sum()
    igfast.IntegratedGradients(network).attribute(x, target=0)
    loss.backward()
    assert network.calls == 1


def test_training_mode_sees_whole_steps():
    """Batch statistics are those of the caller's batch when a chunk is one step: Captum's numbers at that size."""
    import captum.attr

    network, x = batch_norm_network().train(), torch.randn(8, 3, dtype=torch.float64)
    got = igfast.IntegratedGradients(network).attribute(x, target=0, internal_batch_size=8)
    wanted = captum.attr.IntegratedGradients(network).attribute(x, target=0, internal_batch_size=8)
    assert relative_difference(got, wanted) <= 1e-7


def test_dropout_draws_anew_in_each_call():
    network = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5), nn.Linear(64, 2)).double().train()
    x, explainer = torch.randn(2, 3, dtype=torch.float64), igfast.IntegratedGradients(network)
    with pytest.warns(igfast.IgfastWarning, match="changes from call to call"):
        explainer.attribute(x, target=0)
    assert not torch.equal(explainer.attribute(x, target=0), explainer.attribute(x, target=0))


def test_random_generator_is_not_touched_by_igfast():
    network = models.mlp()
    before = torch.get_rng_state()
    igfast.IntegratedGradients(network).attribute(torch.ones(2, 3, dtype=torch.float64), target=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_and_flags_of_tensors_are_not_touched():
    network = models.mlp()
    first = next(network.parameters())
    first.grad = torch.full_like(first, 7.0)
    list(network.parameters())[1].requires_grad_(False)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    baseline = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        result = igfast.IntegratedGradients(network).attribute(x, baseline, 0)
    assert not result.requires_grad
    assert result.grad_fn is None
    in_grad_mode = igfast.IntegratedGradients(network).attribute(x, baseline, 0)
    theirs = captum.attr.IntegratedGradients(network).attribute(x, baseline, 0)
    torch.testing.assert_close(in_grad_mode, theirs, rtol=1e-6, atol=1e-12)
    for leaf in (x, baseline):  # through the factor (input - baseline), as in Captum
        got, wanted = (torch.autograd.grad(a.sum(), leaf)[0] for a in (in_grad_mode, theirs))
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-12)
        in_grad_mode = igfast.IntegratedGradients(network).attribute(x, baseline, 0)
        theirs = captum.attr.IntegratedGradients(network).attribute(x, baseline, 0)
    assert x.grad is None
    assert baseline.grad is None
    assert x.requires_grad
    assert torch.equal(first.grad, torch.full_like(first, 7.0))
    assert [p.requires_grad for p in network.parameters()] == [True, False, True, True]
    assert all(p.grad is None for p in list(network.parameters())[1:])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes_of_the_caller(mode):
    network, x = models.mlp(), torch.randn(2, 3, dtype=torch.float64)
    wanted = igfast.IntegratedGradients(network).attribute(x, target=0)
    with mode():
        state = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        got = igfast.IntegratedGradients(network).attribute(x, target=0)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == state
    assert torch.equal(got, wanted)
    assert not got.is_inference()


def test_tensors_of_inference_mode():
    network = models.TwoInputs()
    with torch.inference_mode():
        a, b = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 2, 4, dtype=torch.float64)
        baseline, scale = torch.randn(2, 3, dtype=torch.float64), torch.rand(2, 1, dtype=torch.float64)
    explainer = igfast.IntegratedGradients(network)
    got = explainer.attribute((a, b), (baseline, 0), 0, scale)
    wanted = explainer.attribute((a.clone(), b.clone()), (baseline.clone(), 0), 0, scale.clone())
    assert relative_difference(got, wanted) == 0


def test_forward_func_is_read_at_call_time():
    explainer = igfast.IntegratedGradients(lambda x: x * 0)
    network, x = models.mlp(), torch.randn(2, 3, dtype=torch.float64)
    explainer.forward_func = network
    assert torch.equal(explainer.attribute(x, target=0), igfast.IntegratedGradients(network).attribute(x, target=0))


def test_ten_threads_share_a_model_and_an_instance():
    explainer = igfast.IntegratedGradients(models.convnet())
    inputs = [torch.randn(2, 3, 8, 8, dtype=torch.float64) for _ in range(10)]
    wanted = [explainer.attribute(x, target=i % 5, n_steps=9 + i) for i, x in enumerate(inputs)]
    got = [None] * len(inputs)

    def work(i):
        got[i] = explainer.attribute(inputs[i], target=i % 5, n_steps=9 + i, internal_batch_size=1 + i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(relative_difference(g, w) <= 1e-12 for g, w in zip(got, wanted, strict=True))


def test_a_call_that_is_interrupted_leaves_the_model_alone():
    network, calls = batch_norm_network().train(), []
    before = snapshot(network)

    def interrupt(module, args, output):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    hook = network.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        igfast.IntegratedGradients(network).attribute(
            torch.randn(2, 3, dtype=torch.float64), target=0, internal_batch_size=2
        )
    hook.remove()
    assert torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_is_known_is_remembered_for_the_model_and_forgotten_with_it():
    from igfast.model.facts import remembered

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x, passes = torch.randn(1, 3, 8, 8), []
    network.register_forward_pre_hook(lambda module, args: passes.append(args[0].shape[0]))
    explainer = igfast.IntegratedGradients(network)
    first = explainer.attribute(x, target=0, n_steps=20, internal_batch_size=2)
    # The own call in two layouts; of the first chunk, one step alone, twice, and the other one.
    assert passes == [1, 1, 2, 1, 1, 1, *[2] * 9]
    passes.clear()
    second = igfast.IntegratedGradients(network).attribute(x, target=0, n_steps=20, internal_batch_size=2)
    assert passes == [2] * 10
    assert relative_difference(second, first) <= 1e-6
    assert network in remembered._values
    for side in range(8, 80):
        igfast.IntegratedGradients(network).attribute(torch.randn(1, 3, side, 8), target=0, n_steps=2)
    assert len(remembered._values[network]) == 64
    before = len(remembered._values)
    del network, explainer
    gc.collect()
    assert len(remembered._values) < before


@pytest.mark.parametrize(
    ("kind", "width", "stride", "layouts"),
    [
        (torch.nn.Conv2d, 4, 4, 1),
        (torch.nn.Conv2d, 4, (4,), 1),
        (torch.nn.Conv2d, (2, 3), (4, 3), 1),
        (torch.nn.Conv2d, 4, (3,), 2),
        (torch.nn.Conv2d, 4, (4, 3), 2),
        (torch.nn.Conv2d, 1, 1, 2),
        (torch.nn.ConvTranspose2d, 2, 2, 2),
    ],
)
def test_a_model_that_cuts_images_into_patches_sees_one_layout(kind, width, stride, layouts):
    network, seen = torch.nn.Sequential(kind(3, 5, width, stride), torch.nn.Flatten(2)), set()
    network.register_forward_pre_hook(lambda module, args: seen.add(args[0].stride()))
    x = torch.randn(1, 3, 16, 16)
    igfast.IntegratedGradients(lambda x: network(x)).attribute(x, target=(0, 0), n_steps=20)
    assert len(seen) == layouts
    seen.clear()
    igfast.IntegratedGradients(network).attribute(x, target=(0, 0), n_steps=20)
    assert len(seen) == layouts


def test_a_stride_that_was_set_later_is_a_number():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 4), torch.nn.Flatten(2))
    network[0].stride = 4
    x = torch.randn(1, 3, 16, 16)
    igfast.IntegratedGradients(network).attribute(x, target=(0, 0), n_steps=20)


def test_a_compiled_model_sees_one_layout():
    network, shapes = models.convnet().float(), []
    handle = network.register_forward_pre_hook(lambda module, args: shapes.append((args[0].shape[0], args[0].stride())))
    x = torch.randn(1, 3, 8, 8)
    igfast.IntegratedGradients(torch.compile(network, backend="eager")).attribute(x, target=0, n_steps=20)
    handle.remove()
    assert {stride for _, stride in shapes} == {x.stride()}
    assert {n_rows for n_rows, _ in shapes} == {1, 20}  # the caller's own call, and all steps


class Unhashable:
    __hash__ = None

    def __call__(self, x):
        return x.sin()


def test_a_function_that_cannot_be_remembered_works():
    x = torch.randn(2, 3, dtype=torch.float64)
    got = igfast.IntegratedGradients(Unhashable()).attribute(x, target=0, internal_batch_size=1)
    assert relative_difference(got[:, 0], x[:, 0].sin()) <= 1e-12
