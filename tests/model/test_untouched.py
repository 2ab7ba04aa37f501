"""Nothing that user code can reach is overwritten, at sizes that nobody passed, or counted for other threads."""

import gc
import threading

import pytest
import torch
from torch import nn

import igfast
from igfast.ops._load import kernels_loaded
from tests.oracle import relative_difference

assert kernels_loaded()
from igfast import _C  # noqa: E402

IMAGE = torch.randn(2, 3, 64, 64)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 5),
    ).eval()  # fmt: skip


class Recorder:
    """Keeps every tensor that a hook is given, and a copy of it as it was then."""

    def __init__(self):
        self.kept = []

    def __call__(self, *given):
        for item in given:
            for tensor in item if isinstance(item, tuple) else item.values() if isinstance(item, dict) else (item,):
                if isinstance(tensor, torch.Tensor):
                    self.kept.append((tensor, tensor.detach().clone()))

    def all_as_they_were(self):
        return len(self.kept) >= 10 and all(torch.equal(tensor.detach(), copy) for tensor, copy in self.kept)


def hooks(model, keep):
    """Every kind of hook, global and local; what each keeps is its arguments."""
    of_modules = torch.nn.modules.module
    return {
        "global forward pre-hook": lambda: [of_modules.register_module_forward_pre_hook(lambda m, args: keep(args))],
        "global forward hook": lambda: [of_modules.register_module_forward_hook(lambda m, args, out: keep(args, out))],
        "global backward hook": lambda: [
            of_modules.register_module_full_backward_hook(lambda m, grads, outs: keep(grads, outs))
        ],
        "forward pre-hook": lambda: [m.register_forward_pre_hook(lambda m, args: keep(args)) for m in model],
        "forward pre-hook with kwargs": lambda: [
            m.register_forward_pre_hook(lambda m, args, kwargs: keep(args, kwargs), with_kwargs=True) for m in model
        ],
        "forward hook": lambda: [m.register_forward_hook(lambda m, args, out: keep(args, out)) for m in model],
        "forward hook with kwargs": lambda: [
            m.register_forward_hook(lambda m, args, kwargs, out: keep(args, kwargs, out), with_kwargs=True)
            for m in model
        ],
        "backward hook": lambda: [
            m.register_full_backward_hook(lambda m, grads, outs: keep(grads, outs)) for m in model
        ],
        "backward pre-hook": lambda: [m.register_full_backward_pre_hook(lambda m, grads: keep(grads)) for m in model],
    }


@pytest.mark.parametrize("kind", hooks((), None))
def test_what_hooks_keep_stays_as_it_was(kind):
    model, recorder = network(), Recorder()
    wanted = igfast.IntegratedGradients(network()).attribute(IMAGE, target=1, n_steps=8)
    handles = hooks(model, recorder)[kind]()
    try:
        got = igfast.IntegratedGradients(model).attribute(IMAGE, target=1, n_steps=8)
    finally:
        for handle in handles:
            handle.remove()
    assert recorder.all_as_they_were()
    assert relative_difference(got, wanted) <= 1e-5


@pytest.mark.parametrize("size", [None, 1, 2])
def test_a_model_that_keeps_its_inputs_has_the_points_of_the_path(size):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = []

        def forward(self, x):
            if torch.is_grad_enabled():
                self.kept.append(x)
            return x.tanh()

    model, x = Keeps(), torch.randn(1, 4, dtype=torch.float64)
    igfast.IntegratedGradients(model).attribute(
        x, method="riemann_right", n_steps=5, target=1, internal_batch_size=size
    )
    points = torch.cat([kept.detach() for kept in model.kept])
    torch.testing.assert_close(points, torch.arange(1, 6).double()[:, None] / 5 * x)


def test_a_model_sees_its_callers_sizes_alone():
    shapes, model = set(), network()
    model.register_forward_pre_hook(lambda m, args: shapes.add(args[0].shape[1:]))
    igfast.IntegratedGradients(model).attribute(torch.randn(1, 3, 130, 128), target=1, n_steps=4)
    assert shapes == {(3, 130, 128)}


def test_lazy_modules_are_built_for_the_callers_inputs():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(2, 3, 100, 100)
    attributions = igfast.IntegratedGradients(model).attribute(x, target=1, n_steps=4)
    assert attributions.shape == x.shape
    assert model(x).shape == (2, 3)


def test_the_pool_is_gone_when_a_call_returns():
    model = network()
    gc.collect()
    before = _C.host_pool_bytes_in_use()  # what hooks of other tests keep
    kept = igfast.IntegratedGradients(model).attribute(IMAGE, target=1, n_steps=8, return_convergence_delta=True)
    layers = igfast.LayerIntegratedGradients(model, model[2]).attribute(IMAGE, target=1, n_steps=8)
    assert _C.host_pool_bytes_in_use() <= before
    assert kept[0].shape[2:] == layers.shape[2:]

    def fails(x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        igfast.IntegratedGradients(fails).attribute(IMAGE, target=1)
    assert _C.host_pool_bytes_in_use() <= before


def test_tensors_of_other_threads_count_for_nobody():
    model, others = network(), []

    def forward(x):
        thread = threading.Thread(target=lambda: others.append(torch.ones(2**26)))  # 256 MiB
        thread.start()
        thread.join()
        return model(x)

    x = IMAGE[:1]
    _, alone = igfast.IntegratedGradients(model).attribute(x, target=1, n_steps=2, return_report=True)
    explainer = igfast.IntegratedGradients(forward, memory_budget="200MiB")
    _, report = explainer.attribute(x, target=1, n_steps=2, return_report=True)
    assert len(others) >= 2
    assert report.peak_bytes < alone.peak_bytes + 2**24


def test_code_around_the_forward_pass_comes_to_its_end():
    """As accelerate's hooks do, which move weights back after it."""
    state = {"entered": 0, "left": 0}
    model = network()
    plain = model.forward

    def wrapped(*args):
        state["entered"] += 1
        output = plain(*args)
        state["left"] += 1
        return output

    model.forward = wrapped
    igfast.LayerIntegratedGradients(model, model[0]).attribute(IMAGE, target=1, n_steps=3)
    igfast.NeuronIntegratedGradients(model, model[2]).attribute(IMAGE, (0, 1, 1), n_steps=3)
    assert state["entered"] == state["left"] > 0


def test_two_threads_leave_running_statistics_as_the_first_found_them():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inside, go_on = threading.Event(), threading.Event()

    def forward_hook(module, args):
        if threading.current_thread().name == "first" and not inside.is_set():
            inside.set()
            go_on.wait(20)

    model[2].register_forward_pre_hook(forward_hook)

    def attribute():
        igfast.IntegratedGradients(model).attribute(torch.randn(4, 3).double(), target=0, internal_batch_size=4)

    first = threading.Thread(target=attribute, name="first")
    first.start()
    inside.wait(20)
    attribute()  # begins after the first moved the statistics, and ends before it
    go_on.set()
    first.join()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:forward_func does not take")
class TestHooksOfAFailedPass:
    class Adapters(nn.Module):
        """Chooses a factor for each example by hooks of one pass, and removes them only if the pass succeeds."""

        def __init__(self, kind):
            super().__init__()
            self.layer, self.kind = nn.Linear(4, 3), kind

        def forward(self, x, factors):
            def scaled(module, args, kwargs=None):
                assert len(args[0]) == len(factors)
                return (args[0] * torch.tensor(factors)[:, None],) if kwargs is None else ((args[0],), kwargs)

            with_kwargs = self.kind == "with_kwargs"
            handle = self.layer.register_forward_pre_hook(scaled, with_kwargs=with_kwargs)
            out = self.layer(x).tanh()
            handle.remove()
            return out

    @pytest.mark.parametrize("kind", ["plain", "with_kwargs"])
    @pytest.mark.parametrize("size", [None, 3, 2])
    def test_a_refused_chunk(self, kind, size):
        model = self.Adapters(kind)
        own = model.layer.register_forward_hook(lambda module, args, out: None)
        x = torch.randn(3, 4)
        for method in (igfast.IntegratedGradients, igfast.LayerIntegratedGradients):
            of = (lambda x: model(x, [1.0, 2.0, 3.0]), *([model.layer] if "Layer" in method.__name__ else []))
            method(*of).attribute(x, target=0, n_steps=4, internal_batch_size=size)
            assert not model.layer._forward_pre_hooks
            assert not model.layer._forward_pre_hooks_with_kwargs
            assert list(model.layer._forward_hooks) == [own.id]

    def test_a_failing_model(self):
        model = self.Adapters("plain")
        with pytest.raises(AssertionError):
            igfast.IntegratedGradients(model).attribute(torch.randn(3, 4), target=0, additional_forward_args=[1.0])
        assert not model.layer._forward_pre_hooks
