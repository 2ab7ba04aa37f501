"""Tensors are overwritten where nobody will see them again, and nowhere else."""

import functools
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import igfast
from igfast.ops._load import kernels_loaded
from tests.oracle import relative_difference

assert kernels_loaded()
from igfast.lean import _liveness  # noqa: E402
from igfast.lean._mode import LeanMode  # noqa: E402

X = torch.randn(2, 3, 6, 6, dtype=torch.float64)
overwrites = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="how Python 3.10 calls is not looked into, so nothing is overwritten"
)


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(_liveness, "WORTHWHILE_BYTES", 0)


class Block(nn.Module):
    """Convolution, batch norm, activation; `self.seen` are the addresses of what comes out of each."""

    def __init__(self, activation=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.activation = activation or nn.ReLU()
        self.seen = []
        self.double().eval()

    def forward(self, x):
        return self.run(x).flatten(1)

    def note(self, x):
        self.seen.append(x.data_ptr())
        return x


class Reassigns(Block):
    def run(self, x):
        x = self.conv(x)
        self.seen.append(x.data_ptr())
        x = self.norm(x)
        self.seen.append(x.data_ptr())
        x = self.activation(x)
        self.seen.append(x.data_ptr())
        return x


class Nests(Block):
    def run(self, x):
        return self.note(self.activation(self.norm(self.conv(x))))


class Functional(Block):
    def run(self, x):
        x = self.conv(x)
        self.seen.append(x.data_ptr())
        x = F.relu(x)
        self.seen.append(x.data_ptr())
        return self.note(torch.relu(self.conv(x)))


class InSequential(Block):
    def run(self, x):
        return nn.Sequential(self.conv, Notes(self), self.norm, Notes(self), self.activation, Notes(self))(x)


class Notes(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.__dict__["block"] = block

    def forward(self, x):
        self.block.note(x)
        return x


class Returns(Block):
    def run(self, x):
        return self.note(self.last(self.conv(x)))

    def last(self, x):
        self.seen.append(x.data_ptr())
        return self.norm(x)


class KeepsAnother(Block):
    def run(self, x):
        kept = x = self.conv(x)
        x = self.norm(x)
        return x + kept


class KeepsInAList(Block):
    def run(self, x):
        x = self.conv(x)
        kept = [x]
        x = self.activation(x)
        return x + kept[0]


class KeepsInItself(Block):
    def run(self, x):
        x = self.conv(x)
        self.kept = x
        x = self.norm(x)
        return x + self.kept


class StoresElsewhere(Block):
    def run(self, x):
        x = self.conv(x)
        y = self.norm(x)
        return x + y


class KeepsAView(Block):
    def run(self, x):
        x = self.conv(x)
        kept = x[:, :1]
        x = self.norm(x)
        return x + kept


class KeepsDetached(Block):
    def run(self, x):
        x = self.conv(x)
        kept = x.detach()
        x = self.norm(x)
        return x * kept


class KeepsTheStorage(Block):
    def run(self, x):
        x = self.conv(x)
        shape, kept = x.shape, x.untyped_storage()
        x = self.norm(x)
        return x + torch.empty(0, dtype=x.dtype).set_(kept, 0, shape)


class SavedByAutograd(Block):
    def run(self, x):
        x = self.conv(x)
        squared = x * x
        x = self.norm(x)
        return x + squared


class Generator(Block):
    def run(self, x):
        def parts(x):
            yield x
            x = self.norm(x)
            yield x

        return sum(parts(self.conv(x)))


class InAClosure(Block):
    def run(self, x):
        x = self.conv(x)

        def again():
            return x + 1

        before = again()
        x = self.norm(x)
        return x + before


class BoundCall(Block):
    def run(self, x):
        call = self.norm.__call__
        x = self.conv(x)
        kept, also = x, x
        x = call(x)
        return x + kept * also


class Partial(Block):
    def run(self, x):
        relu = functools.partial(F.relu)
        x = self.conv(x)
        kept = x
        x = relu(x)
        return x + kept


class FirstOfAll(Block):
    def run(self, x):
        x = self.norm(x)
        return self.activation(x)


class EitherOfTwo(Block):
    def run(self, x):
        y = self.conv(x)
        x = self.conv(y)
        x = self.norm(y if self.activation else x)
        return x + y


class FirstThatIs(Block):
    def run(self, x):
        y = [self.conv(x)].pop()
        z = x = None
        x = self.norm(z if z is not None else y)
        return x + y


class Mapped(Block):
    def run(self, x):
        kept = [self.conv(x), self.conv(x)]
        ys = map(self.activation, kept)
        ys = list(ys)
        return ys[0] + kept[0] * kept[1]


class MappedAtOnce(Block):
    def run(self, x):
        kept = [self.conv(x)]
        return self.all_of(kept) + kept[0]

    def all_of(self, kept):
        ys = map(torch.relu, kept)
        return sum(ys)


class StarMapped(Block):
    def run(self, x):
        arguments = [(self.conv(x),), (self.conv(x),)]
        ys = list(itertools.starmap(self.activation, arguments))
        return ys[0] + arguments[0][0] * arguments[1][0]


class BoundCallElsewhere(Block):
    def run(self, x):
        self.__dict__["fn"] = self.norm.__call__
        features = []
        x = self.conv(x)
        features.append(x)
        skip = x
        x = self.fn(x)
        return x + skip * features[0]


class Catches(Block):
    def run(self, x):
        x = self.conv(x)
        try:
            x = self.norm(x)
        except RuntimeError:
            x = x * 2
        return self.activation(x)


class AView(Block):
    def run(self, x):
        both = self.conv(x)
        x = both[:, :]
        x = self.norm(x)
        return x + both


KEEPERS = [
    *(KeepsAnother, KeepsInAList, KeepsInItself, StoresElsewhere, KeepsAView, KeepsDetached, KeepsTheStorage),
    *(
        SavedByAutograd,
        Generator,
        InAClosure,
        BoundCall,
        Partial,
        FirstOfAll,
        AView,
        EitherOfTwo,
        FirstThatIs,
        Mapped,
        MappedAtOnce,
        StarMapped,
        BoundCallElsewhere,
    ),
]
OVERWRITERS = [Reassigns, Nests, Functional, InSequential, Returns]


def attribute(network, x=X, lean=True):
    return igfast.IntegratedGradients(network, lean=lean).attribute(x, target=7, n_steps=3)


@pytest.mark.parametrize("kind", [*KEEPERS, *OVERWRITERS, Catches])
def test_the_result_is_that_of_the_plain_model(kind):
    before = X.clone()
    assert relative_difference(attribute(kind()), attribute(kind(), lean=False)) <= 1e-12
    assert torch.equal(X, before)


@pytest.mark.parametrize("kind", KEEPERS)
def test_forward_values_where_an_argument_is_seen_again(kind):
    network = kind()
    x = X.clone().requires_grad_()
    wanted = network(x)
    with LeanMode():
        assert torch.equal(network(x), wanted)


@overwrites
@pytest.mark.parametrize("kind", [Reassigns, Functional, InSequential, Returns])
def test_dead_arguments_are_overwritten(kind):
    network = kind()
    with LeanMode():
        network(X.clone().requires_grad_())
    first = network.seen[:3] if kind in (Reassigns, InSequential) else network.seen[:2]
    assert len(set(first)) == 1


@overwrites
@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.LeakyReLU(0.1), nn.Threshold(0.1, -2.0)]
)
def test_every_activation_overwrites(activation):
    network = Reassigns(activation)
    with LeanMode():
        network(X.clone().requires_grad_())
    assert len(set(network.seen)) == 1
    assert relative_difference(attribute(network), attribute(Reassigns(activation), lean=False)) <= 1e-12


@overwrites
def test_results_of_calls_are_overwritten():
    network, pointers = Nests(), []
    handle = network.conv.register_forward_hook(lambda _, args, out: pointers.append(out.data_ptr()))
    with LeanMode():
        network(X.clone().requires_grad_())
    handle.remove()
    assert network.seen == pointers


@pytest.mark.parametrize("on", ["norm", "activation"])
def test_what_a_hook_sees_is_not_overwritten(on):
    network, seen = Reassigns(), []
    x = X.clone().requires_grad_()
    getattr(network, on).register_forward_hook(lambda _, args, out: seen.append((args[0].clone(), out.clone())))
    network(x)
    with LeanMode():
        network(x)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_what_a_hook_keeps_is_not_overwritten():
    network, kept = Reassigns(), []
    x = X.clone().requires_grad_()
    network.conv.register_forward_hook(lambda _, args, out: kept.append(out))
    network(x)
    with LeanMode():
        network(x)
    assert torch.equal(*kept)


def test_small_tensors_are_left_alone(monkeypatch):
    monkeypatch.setattr(_liveness, "WORTHWHILE_BYTES", X.nbytes * 2)
    network = Reassigns()
    with LeanMode():
        network(X.clone().requires_grad_())
    first, second, third = network.seen
    assert first != second != third


@overwrites
def test_another_evaluation_of_frames_is_counted_by_itself():
    script = Path(__file__).parent.parent / "scripts" / "frame_evaluation.py"
    subprocess.run([sys.executable, str(script)], check=True)
