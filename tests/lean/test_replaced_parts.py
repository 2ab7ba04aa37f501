"""Lean execution where functions, forward methods or whole models were replaced, copied or frozen by others."""

import copy
import pickle
import threading

import captum.attr
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
import transformers
from torch import nn

import igfast
from igfast.lean.lending import acting, own_forward
from igfast.lean.recompute import repeated_blocks
from tests.lean.test_recompute import Network, chain
from tests.oracle import relative_difference

DOUBLE = torch.float64
X = torch.randn(3, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def both(model, **options):
    found = [library.IntegratedGradients(model).attribute(X, target=1, **options) for library in (captum.attr, igfast)]
    return found[1], found[0]


def test_a_function_around_one_of_pytorchs_is_called_once(monkeypatch):
    plain, network = F.softmax, nn.Linear(6, 4).double()
    monkeypatch.setattr(F, "softmax", lambda x, *args, **kwargs: plain(x / 2, *args, **kwargs))
    got, wanted = both(lambda x: F.softmax(network(x), dim=1))
    assert relative_difference(got, wanted) <= 1e-6
    _, report = igfast.IntegratedGradients(network).attribute(X, target=1, return_report=True)
    assert report.lean.off_because == "torch.nn.functional.softmax was replaced"
    monkeypatch.undo()
    _, report = igfast.IntegratedGradients(network).attribute(X, target=1, return_report=True)
    assert not report.lean.off_because


def activation():
    return transformers.activations.NewGELUActivation()


@pytest.mark.parametrize("way", ["closure", "hook", "class"])
def test_a_replaced_forward_keeps_its_other_gradients(way, monkeypatch):
    torch.manual_seed(0)
    first, act, last = nn.Linear(6, 6).double(), activation(), nn.Linear(6, 3).double()
    gates, own = [], act.forward

    def gated(x):
        return own(x) * gates[-1]

    if way == "closure":
        act.forward = gated
    elif way == "class":
        plain = type(act).forward
        monkeypatch.setattr(type(act), "forward", lambda self, x: plain(self, x) * gates[-1])
    else:
        act.register_forward_hook(lambda module, args, output: output * gates[-1])

    def forward(x):
        gates.append(x.sigmoid())
        return last(act(first(x)))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.last = first, act, last

        def forward(self, x):
            return forward(x)

    got, wanted = both(Model(), n_steps=30)
    assert relative_difference(got, wanted) <= 1e-6


def test_a_model_that_is_copied_meanwhile_is_its_own():
    layer = nn.Linear(2, 2)
    with acting({layer: lambda forward, args, kwargs: forward(*args, **kwargs) * 0 + 7}):
        copied, pickled = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
        assert own_forward(layer) is None
        assert (layer(torch.ones(1, 2)) == 7).all()
    x = torch.ones(1, 2)
    for one in (copied, pickled):
        nn.init.zeros_(one.weight)
        assert torch.equal(one(x)[0], one.bias)
        assert not (one(x) == 7).any()
    assert "forward" not in vars(layer)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.parametrize("freeze", [torch.jit.freeze, torch.jit.optimize_for_inference])
def test_frozen_models(freeze):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
    frozen = freeze(torch.jit.script(network))
    got, wanted = both(frozen)
    assert relative_difference(got, wanted) <= 1e-6
    igfast.diagnose(frozen, X, target=1)


def test_compiled_functions_inside_a_model_stay_whole():
    import torch._dynamo
    from torch._dynamo.utils import counters

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(6, 3).double()
            self.part = torch.compile(lambda x: F.relu(self.layer(x)).sin(), backend="eager")

        def forward(self, x):
            return self.part(x)

    torch._dynamo.reset()
    counters.clear()
    _, report = igfast.IntegratedGradients(Model()).attribute(X, target=1, return_report=True)
    assert not counters["graph_break"]
    assert not report.notes
    torch._dynamo.reset()


def test_an_interrupt_leaves_no_mode_behind():
    from torch._C import _len_torch_function_stack

    from igfast.lean.mode import LeanMode
    from igfast.model.state import undisturbed

    def interrupted():
        with undisturbed(nn.Linear(1, 1)):
            LeanMode().__enter__()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert _len_torch_function_stack() == 0


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.act = nn.Linear(6, 6).double(), nn.Tanh()

    def forward(self, x):
        return x + self.act(self.inner(x))


@pytest.mark.parametrize("way", ["hook", "closure"])
def test_blocks_that_hand_out_tensors_do_not_run_again(way):
    from igfast.lean import Execution
    from igfast.lean.recompute import NotRecomputableError

    kept = []
    model = nn.Sequential(*(Block() for _ in range(3)))
    if way == "hook":
        model[1].act.register_forward_hook(lambda module, args, output: kept.append(output))
    else:
        own = model[1].inner.forward
        model[1].inner.forward = lambda x: kept.append(own(x)) or kept[-1]
    execution = Execution("not now", module=nn.Sequential(*model))
    assert "3 repeated blocks" in execution.save_more(torch.device("cpu"))
    with pytest.raises(NotRecomputableError, match=r"hook on a Tanh|forward of a Linear"), execution.active():
        model(X.clone().requires_grad_())


def test_a_forked_process_does_not_wait_for_a_lock_of_a_thread():
    import os

    from igfast.lean import lending
    from igfast.model import state

    taken, done = threading.Event(), threading.Event()

    def hold():
        with lending._lock, state._saved_lock:
            taken.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(30)
    child = os.fork()
    if child == 0:
        free = lending._lock.acquire(timeout=1) and state._saved_lock.acquire(timeout=1)
        os._exit(0 if free else 1)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_replicas_of_a_model_on_several_gpus_do_not_run_blocks_again():
    """A replica would call the block of the first GPU."""
    network = Network(chain)
    assert len(repeated_blocks(network)) == 3
    assert repeated_blocks(nn.DataParallel(network)) == []
    assert repeated_blocks(nn.Sequential(nn.DataParallel(network), nn.ReLU())) == []


@pytest.mark.parametrize("name", ["relu", "batch_norm", "max_pool1d"])
def test_a_function_of_torch_that_functional_calls(name, monkeypatch):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6).double().eval()
    layers = {"relu": nn.ReLU(), "batch_norm": norm, "max_pool1d": nn.Sequential(nn.MaxPool1d(2), nn.Linear(3, 6))}
    model = nn.Sequential(nn.Linear(6, 6), layers[name], nn.Linear(6, 3)).double()
    plain = getattr(torch, name)
    monkeypatch.setattr(torch, name, lambda x, *args, **kwargs: plain(x.tanh(), *args, **kwargs))
    got, wanted = both(model)
    assert relative_difference(got, wanted) <= 1e-6
    _, report = igfast.IntegratedGradients(model).attribute(X, target=1, return_report=True)
    assert report.lean.off_because == f"torch.{name} was replaced"


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, of dual tensors
@pytest.mark.parametrize("way", ["functional_call", "linear"])
def test_tangents_of_weights_are_kept(way):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double().requires_grad_(False)
    moves = {name: torch.randn_like(weight) for name, weight in model.named_parameters()}

    def forward(x):
        with forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(w, moves[name]) for name, w in model.named_parameters()}
            if way == "linear":
                output = F.linear(x, duals["0.weight"], model[0].bias)
            else:
                output = torch.func.functional_call(model, duals, (x,))
            primal, tangent = forward_ad.unpack_dual(output)
            return primal.tanh() if tangent is None else primal.tanh() + tangent

    got, wanted = both(forward)
    assert relative_difference(got, wanted) <= 1e-6
