"""Models that enter modes, differentiate or replace weights inside their forward pass."""

from contextlib import nullcontext

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import igfast
from igfast.lean.lending import acting
from igfast.lean.recompute import NotRecomputableError, Tape, repeated_blocks
from igfast.ops._load import kernels_loaded
from tests.oracle import relative_difference

assert kernels_loaded()
from igfast.lean.mode import LeanMode  # noqa: E402


class CatchesErrors(nn.Module):
    """An energy and its force; without a graph, where PyTorch cannot differentiate, the energy alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3).double()

    def forward(self, x):
        energy = torch.tanh(self.layer(x)).sum(1)
        try:
            (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        except RuntimeError:
            force = torch.zeros_like(x)
        return energy + force.square().sum(1)


def test_a_model_that_catches_the_error_of_its_own_gradient():
    model, x = CatchesErrors().eval(), torch.randn(2, 4, dtype=torch.float64)
    wanted = captum.attr.IntegratedGradients(model).attribute(x, n_steps=20)
    with pytest.warns(igfast.IgfastWarning, match="differentiates inside its forward pass"):
        got = igfast.IntegratedGradients(model).attribute(x, n_steps=20)
    assert relative_difference(got, wanted) <= 1e-7
    with pytest.raises(igfast.LeanError, match="differentiates"):
        igfast.IntegratedGradients(model, lean=True).attribute(x, n_steps=20)


class Clips(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result.clamp(max=0.1) if func is torch.ops.aten.relu.default else result


def relu_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).double()


class Clipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = relu_network()

    def forward(self, x):
        with Clips():
            return self.network(x)


def test_a_dispatch_mode_inside_the_model():
    model, x = Clipped(), torch.randn(2, 6, dtype=torch.float64)
    wanted = captum.attr.IntegratedGradients(model).attribute(x, target=0, n_steps=20)
    got, report = igfast.IntegratedGradients(model).attribute(x, target=0, n_steps=20, return_report=True)
    assert relative_difference(got, wanted) <= 1e-7
    assert "a TorchDispatchMode" in str(report)


def test_a_dispatch_mode_of_the_callers():
    model, x = relu_network(), torch.randn(2, 6, dtype=torch.float64)
    with Clips():
        wanted = captum.attr.IntegratedGradients(model).attribute(x, target=0, n_steps=20)
        got = igfast.IntegratedGradients(model).attribute(x, target=0, n_steps=20)
        with pytest.raises(igfast.LeanError, match="a TorchDispatchMode is active"):
            igfast.IntegratedGradients(model, lean=True).attribute(x, target=0, n_steps=20)
    assert relative_difference(got, wanted) <= 1e-7


class Wrapped(torch.Tensor):
    """A tensor without memory of its own, which PyTorch's function modes take for an ordinary one."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        wrapped = torch.Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), dtype=held.dtype)
        wrapped.held = held
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(cls._inside, (args, kwargs or {}))
        return tree_map(lambda value: cls(value) if isinstance(value, torch.Tensor) else value, func(*args, **kwargs))

    @staticmethod
    def _inside(value):
        return value.held if isinstance(value, Wrapped) else value


class Wrap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return Wrapped(x.detach())

    @staticmethod
    def backward(ctx, grad):
        return Wrapped._inside(grad)


@pytest.mark.parametrize("function", [F.relu, lambda x: F.linear(x, torch.ones(2, 5))])
def test_tensors_without_memory(function):
    wrapped = Wrap.apply(torch.randn(4, 5).requires_grad_() * 1)
    with LeanMode():
        assert type(function(wrapped)) is Wrapped


def test_an_imaginary_part_of_a_conjugate():
    # One number is dense, and its memory holds the number without its sign.
    real = torch.tensor([[2.0]], requires_grad=True)
    imaginary = torch.complex(real, 3 * real).conj().imag
    with LeanMode():
        assert F.relu(imaginary).item() == 0


class Swaps(nn.Module):
    """Gives a norm another weight for the forward pass alone; a computed one if `computes`."""

    def __init__(self, computes):
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8), nn.Linear(8, 2))
        self.other, self.computes = nn.Parameter(torch.randn(8) * 3), computes

    def forward(self, x):
        weight = self.other * (1 + x.sum()) if self.computes else self.other
        return torch.func.functional_call(self.base, {"1.weight": weight}, (x,))


class Doubles(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is F.rms_norm else result


class EntersAMode(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.RMSNorm(8), nn.Linear(8, 2)

    def forward(self, x):
        with Doubles():
            values = self.norm(x)
        return self.head(values)


@pytest.mark.filterwarnings("ignore:lean execution does not fit this model")
@pytest.mark.parametrize("model", [Swaps(False), Swaps(True), EntersAMode()], ids=["swapped", "computed", "mode"])
def test_a_norm_that_runs_again_is_the_same_norm(model):
    model, x = model.bfloat16().eval(), torch.randn(1, 8, dtype=torch.bfloat16)
    wanted = igfast.IntegratedGradients(model, lean=False).attribute(x, target=0, internal_batch_size=1)
    got = igfast.IntegratedGradients(model).attribute(x, target=0, internal_batch_size=1)
    assert relative_difference(got, wanted) <= 1e-2


@pytest.mark.filterwarnings("ignore:lean execution does not fit this model")
def test_attributions_inside_a_forward_function():
    network = nn.Linear(3, 2)
    inner = igfast.IntegratedGradients(network, lean=True)
    outer = igfast.IntegratedGradients(
        lambda x: network(x) + inner.attribute(x.detach(), target=0).sum(1, keepdim=True)
    )
    x = torch.randn(2, 3)
    wanted = igfast.IntegratedGradients(network).attribute(x, target=0)
    assert relative_difference(outer.attribute(x, target=0), wanted) <= 1e-6


def test_modules_are_given_back_if_one_cannot_be_lent():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    own = second.forward = lambda x: x + 1  # as a user replaces it
    act = lambda forward, args, kwargs: forward(*args, **kwargs)  # noqa: E731

    class Fails(dict):
        def __iter__(self):
            yield first
            yield second
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), acting(Fails({first: act, second: act})):
        pass
    assert "forward" not in vars(first)
    assert second.forward is own


class Sharpens(TorchFunctionMode):
    """Changes the gradient of tanh, and not its value."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result.detach() + 3 * (result - result.detach()) if func is torch.tanh else result


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, x):
        return self.layers(x)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        with Sharpens():
            return self.blocks[1](self.blocks[0](x))


def test_blocks_in_a_mode_of_the_models_are_not_computed_again():
    model = Blocks().double()
    tape = Tape(repeated_blocks(model), nullcontext)
    with pytest.raises(NotRecomputableError, match="TorchFunctionMode"), tape.recording():
        model(torch.randn(2, 4, dtype=torch.float64).requires_grad_())
