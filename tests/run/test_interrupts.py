"""Ctrl-C and time limits arrive at the caller, wherever they come, and leave everything as it was."""

import functools
import signal
import sys
from collections import Counter

import captum.attr
import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._device import DeviceContext

import igfast
from igfast import _C
from igfast.interrupts import is_interrupt
from igfast.lean.mode import LeanMode
from igfast.model.facts import remembered

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore:the output of forward_func for one example depends")


def network(training=False):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)).train(
        training
    )


class TimeIsUpError(ValueError):
    pass


class Limited(nn.Module):
    """Gets a signal in one of its passes, whose handler raises."""

    def __init__(self):
        super().__init__()
        self.network, self.left = network(), sys.maxsize

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGUSR1)
        return self.network(x)


def plain(*_):
    raise TimeIsUpError("no time is left")


class Method:
    def handle(self, *_):
        raise TimeIsUpError("no time is left")

    def __call__(self, *_):
        raise TimeIsUpError("no time is left")


HANDLERS = {"function": plain, "method": Method().handle, "object": Method(), "partial": functools.partial(plain, 1)}
CALLS = {
    "inputs": lambda model: igfast.IntegratedGradients(model).attribute(X, target=1, n_steps=6),
    "parts": lambda model: igfast.IntegratedGradients(model).attribute(X, target=1, n_steps=6, internal_batch_size=2),
    "layer": lambda model: igfast.LayerIntegratedGradients(model, model.network[0]).attribute(X, target=1, n_steps=6),
    "neuron": lambda model: igfast.NeuronIntegratedGradients(model, model.network[0]).attribute(
        X, (1, 2, 2), n_steps=6
    ),
    "tolerance": lambda model: igfast.IntegratedGradients(model).attribute(X, target=1, tolerance=0.1),
    "shap": lambda model: igfast.GradientShap(model).attribute(X, torch.zeros(2, 3, 8, 8), target=1, n_samples=3),
    "tunnel": lambda model: igfast_tunnel(model).attribute(X, target=1, nt_samples=3, n_steps=3),
    "diagnosis": lambda model: igfast.diagnose(model, X, 1, n_steps=4, max_steps=8),
}


def igfast_tunnel(model):
    with igfast.patch_captum():
        return captum.attr.NoiseTunnel(captum.attr.IntegratedGradients(model))


@pytest.fixture
def handler():
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handle: signal.signal(signal.SIGUSR1, handle)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("call", CALLS)
def test_a_time_limit_arrives_in_every_pass(call, handler):
    handler(plain)
    n_passes = 0
    while True:
        model = Limited()
        model.left = n_passes + 1
        try:
            CALLS[call](model)
        except TimeIsUpError:
            n_passes += 1
        else:
            assert model.left > 0, f"the error of pass {n_passes + 1} was lost"
            break
    assert n_passes >= 3


@pytest.mark.parametrize("kind", HANDLERS)
def test_handlers_of_every_kind(kind, handler):
    handler(HANDLERS[kind])
    model = Limited()
    model.left = 3
    with pytest.raises(TimeIsUpError):
        CALLS["inputs"](model)
    _, report = igfast.IntegratedGradients(model).attribute(X, target=1, n_steps=6, return_report=True)
    assert not report.lean.off_because


def test_what_an_interrupt_is():
    assert is_interrupt(TimeoutError())
    assert is_interrupt(KeyboardInterrupt())
    assert not is_interrupt(ValueError("mine"))


# ---------------------------------------------------------------------------------------------------- Ctrl-C

WATCHED = (
    *("igfast/model/state.py", "igfast/model/hooks.py", "igfast/memory/scope.py", "igfast/function_mode.py"),
    "torch/overrides.py",
)


def state(model):
    limit, paused = _C.set_host_pool_limit(-1), _C.pause_host_pool(False)
    _C.set_host_pool_limit(limit)
    _C.pause_host_pool(paused)
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    modes = list(map(id, _get_current_function_mode_stack()))
    return limit, paused, hooks, modes, torch.is_grad_enabled(), [b.tolist() for b in model.buffers()]


def traced(call, on_start):
    """Calls a function; `on_start` gets each code object of the watched files that starts or goes on."""

    def trace(frame, event, _):
        if event == "call" and frame.f_code.co_filename.endswith(WATCHED):
            on_start(frame.f_code)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return call()
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("default_device", [None, "cpu"])
@pytest.mark.parametrize("kind", ["inputs", "training", "layer"])
def test_ctrl_c_at_any_start_of_a_function(kind, default_device):
    model = network(training=kind == "training")
    options = {"memory_budget": "200MB"} if kind == "training" else {}
    if kind == "layer":
        explainer = igfast.LayerIntegratedGradients(model, model[2])
    else:
        explainer = igfast.IntegratedGradients(model, **options)

    def call():
        remembered._values.clear()
        return explainer.attribute(X, target=1, n_steps=6)

    torch.set_default_device(default_device)
    try:
        counts = Counter()
        call()
        wanted = traced(call, lambda code: counts.update([code]))
        assert len(counts) >= 8
        for code, n in counts.items():
            for place in {1, n}:
                left = [place]

                def interrupt(started, code=code, left=left):
                    left[0] -= started is code
                    if left[0] == 0:
                        left[0] = -1
                        raise KeyboardInterrupt

                before = state(model)
                with pytest.raises(KeyboardInterrupt):
                    traced(call, interrupt)
                assert state(model) == before, f"{code.co_name}, time {place}"
                assert torch.equal(call(), wanted)
    finally:
        torch.set_default_device(None)


def test_a_mode_that_pytorch_has_taken_off():
    mode, own = LeanMode(), DeviceContext(torch.device("cpu"))
    with own:
        mode.__enter__()
        _pop_mode()  # as PyTorch does for the time of a function
        mode.__exit__(None, None, None)
        assert _get_current_function_mode_stack()[-1:] == [own]
        _push_mode(mode)  # as PyTorch does when the traceback is freed
        try:
            nn.functional.relu(torch.randn(3, requires_grad=True))
        finally:
            _pop_mode()
    assert not mode.swapped
