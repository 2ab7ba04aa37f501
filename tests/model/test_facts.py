"""What is found out about a model on a GPU: whether plain autograd is faster for so small a call, how cuDNN rounds."""

import gc
import weakref

import pytest
import torch
from torch import nn

import igfast
from igfast.model import independence
from igfast.model.tap import LayerTap
from igfast.run import integration

_BEFORE = (
    torch.backends.cudnn.conv.fp32_precision,
    torch.backends.cudnn.rnn.fp32_precision,
    torch.backends.cudnn.fp32_precision,
    torch.backends.fp32_precision,
)


@pytest.fixture
def precisions():
    """Puts PyTorch's settings back."""
    yield torch.backends
    cudnn = torch.backends.cudnn
    torch.backends.fp32_precision = _BEFORE[3]
    cudnn.fp32_precision = _BEFORE[2]
    cudnn.rnn.fp32_precision = _BEFORE[1]
    cudnn.conv.fp32_precision = _BEFORE[0]


def set_allowed(backends):
    backends.cudnn.allow_tf32 = False


def set_of_convolutions(backends):
    backends.cudnn.conv.fp32_precision = "ieee"  # after which PyTorch refuses to read allow_tf32


def set_of_all(backends):
    backends.cudnn.conv.fp32_precision = "none"
    backends.fp32_precision = "tf32"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [(lambda backends: None, True), (set_allowed, False), (set_of_convolutions, False), (set_of_all, True)],
)
def test_rounding_of_convolutions(precisions, change, wanted):
    change(precisions)
    assert independence.rounds_to_tf32() is wanted


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


@pytest.mark.parametrize("lean", ["auto", True])
@pytest.mark.parametrize(("side", "is_small"), [(32, True), (256, False)])
def test_a_small_call_on_a_gpu_runs_plainly(side, is_small, lean, monkeypatch):
    x = torch.randn(1, 3, side, side)
    wanted = igfast.IntegratedGradients(network()).attribute(x, target=1)
    monkeypatch.setattr(integration, "_PLAIN_IS_FASTER", {"cpu"})
    explainer = igfast.IntegratedGradients(network(), lean=lean)
    for _ in range(2):  # the first call is like the others
        got, report = explainer.attribute(x, target=1, return_report=True)
        assert bool(report.lean.off_because) is (is_small and lean == "auto")
        torch.testing.assert_close(got, wanted)


def test_weights_do_not_count(monkeypatch):
    monkeypatch.setattr(integration, "_PLAIN_IS_FASTER", {"cpu"})
    wide = nn.Sequential(nn.Linear(4, 2**20), nn.ReLU(), nn.Linear(2**20, 2))
    _, report = igfast.IntegratedGradients(wide).attribute(torch.randn(1, 4), target=1, n_steps=9, return_report=True)
    assert report.lean.off_because
    _, report = igfast.IntegratedGradients(wide).attribute(torch.randn(1, 4), target=1, n_steps=20, return_report=True)
    assert not report.lean.off_because


def test_weights_without_memory(monkeypatch):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.head = network(), nn.LazyLinear(4)

        def forward(self, x):
            return self.network(x)

    monkeypatch.setattr(integration, "_PLAIN_IS_FASTER", {"cpu"})
    x = torch.randn(1, 3, 32, 32)
    got, report = igfast.IntegratedGradients(Unused().eval()).attribute(x, target=1, return_report=True)
    assert "plain autograd keeps little" in report.lean.off_because
    torch.testing.assert_close(got, igfast.IntegratedGradients(network()).attribute(x, target=1))


def test_a_small_budget_is_for_lean_execution(monkeypatch):
    monkeypatch.setattr(integration, "_PLAIN_IS_FASTER", {"cpu"})
    explainer = igfast.IntegratedGradients(network(), memory_budget="12MiB")
    _, report = explainer.attribute(torch.randn(1, 3, 32, 32), target=1, return_report=True)
    assert not report.lean.off_because


def test_a_compiled_model_is_said_to_be_one(monkeypatch):
    monkeypatch.setattr(integration, "_PLAIN_IS_FASTER", {"cpu"})
    compiled = torch.compile(network(), backend="eager")
    _, report = igfast.IntegratedGradients(compiled).attribute(torch.randn(1, 3, 32, 32), target=1, return_report=True)
    assert "is compiled" in report.lean.off_because


def test_frozen_weights_are_another_kind_of_call(monkeypatch):
    monkeypatch.setattr(integration, "_PLAIN_IS_FASTER", {"cpu"})
    wide = nn.Sequential(nn.Linear(4, 2**18), nn.Linear(2**18, 2)).requires_grad_(False)
    x = torch.randn(1, 4)
    for frozen in (True, False):  # weights that need a gradient keep the wide layer's values
        wide.requires_grad_(not frozen)
        _, report = igfast.IntegratedGradients(wide).attribute(x, target=1, n_steps=80, return_report=True)
        assert bool(report.lean.off_because) is frozen


def test_a_model_that_forbids_hooks_is_left_to_lean_execution(monkeypatch):
    class Forbids(nn.Module):
        def forward(self, x):
            with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
                return (x * x).sum(1)

    monkeypatch.setattr(integration, "_PLAIN_IS_FASTER", {"cpu"})
    x = torch.randn(2, 4)
    got, report = igfast.IntegratedGradients(Forbids()).attribute(x, return_report=True)
    assert not report.lean.off_because
    torch.testing.assert_close(got, x * x)


def test_what_a_pass_keeps_is_freed_with_it(monkeypatch):
    """Hooks on saved tensors that return the tensor itself would tie it to its graph for good."""
    seen = []

    class Keeps(nn.Module):
        def forward(self, x):
            y = x.exp()
            seen.append(weakref.ref(y))
            return y.sum(1)

    monkeypatch.setattr(integration, "_PLAIN_IS_FASTER", {"cpu"})
    gc.disable()
    try:
        igfast.IntegratedGradients(Keeps()).attribute(torch.randn(2, 4))
    finally:
        gc.enable()
    assert len(seen) >= 3  # the caller's own call, what it keeps, and a chunk
    assert not any(ref() is not None for ref in seen)


def test_a_small_state_that_changes_from_call_to_call_is_told():
    class Warms(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.calls = nn.Linear(4, 2), 0

        def forward(self, x):
            self.calls += 1
            return self.head(x) * (1 + 2e-3 / self.calls)

    with pytest.warns(igfast.IgfastWarning, match="changes from call to call"):
        igfast.IntegratedGradients(Warms()).attribute(torch.randn(1, 4), target=1)


def test_replicas_are_put_together_in_the_order_of_the_devices():
    layer = nn.Linear(2, 2)
    tap = LayerTap([layer], False, [0, 1])

    class Copy(torch.Tensor):
        """A part of a batch that counts as being on the first device already."""

        def to(self, *_):
            return self.as_subclass(torch.Tensor)

    first, second = torch.zeros(1, 2).as_subclass(Copy), torch.ones(2, 2).as_subclass(Copy)
    (found,) = tap._gather({torch.device("cuda", 1): (second,), torch.device("cuda", 0): (first,)})
    assert found[:, 0].tolist() == [0.0, 1.0, 1.0]


class Configured(nn.Module):
    """Mixes its rows if an attribute, or something in it, says so."""

    def __init__(self, held, is_on):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.held, self.is_on = nn.Linear(3, 2).double(), held, is_on

    def forward(self, x):
        return self.layer(x * (1 + x.mean(0)) if self.is_on(self.held) else x * 1.5).tanh()


class Config:
    mixes = False

    def __init__(self):
        self.mixes = False


HELD = {
    "object": (Config, lambda held: held.mixes, lambda m: setattr(m.held, "mixes", True)),
    "dict": (lambda: {"mixes": False}, lambda held: held["mixes"], lambda m: m.held.update(mixes=True)),
    "list": (lambda: [False], lambda held: held[0], lambda m: m.held.__setitem__(0, True)),
    "None": (lambda: None, lambda held: held is not None, lambda m: setattr(m, "held", object())),
    "function": (lambda: lambda: False, lambda held: held(), lambda m: setattr(m, "held", lambda: True)),
}


@pytest.mark.parametrize("kind", HELD)
def test_what_attributes_hold_is_looked_at_anew(kind):
    make, is_on, turn_on = HELD[kind]
    model = Configured(make(), is_on)
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    explainer = igfast.IntegratedGradients(model)
    _, report = explainer.attribute(x, target=1, return_report=True)
    assert not report.notes
    turn_on(model)
    with pytest.warns(igfast.IgfastWarning, match="depends on the others"):
        explainer.attribute(x, target=1)
