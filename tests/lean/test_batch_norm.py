"""Batch norm that overwrites its input, against PyTorch's: bit for bit, in every layout."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from igfast.ops._load import kernels_loaded

assert kernels_loaded()
from igfast.lean._mode import LeanMode  # noqa: E402

# Up to 512 KiB PyTorch's result is copied over the input; above it is overwritten, also where its channels are odd.
LAYOUTS = {
    "contiguous": lambda: torch.randn(2, 64, 40, 40),
    "channels-last": lambda: torch.randn(2, 64, 40, 40).to(memory_format=torch.channels_last),
    "odd": lambda: torch.randn(3, 37, 41, 43),
    "odd channels-last": lambda: torch.randn(3, 37, 41, 43).to(memory_format=torch.channels_last),
    "one": lambda: torch.randn(1, 70, 66, 62),
    "one channels-last": lambda: torch.randn(1, 70, 66, 62).to(memory_format=torch.channels_last),
    "one channel": lambda: torch.randn(2, 1, 400, 401),
    "small": lambda: torch.randn(2, 5, 30, 31).to(memory_format=torch.channels_last),
    "volume": lambda: torch.randn(2, 5, 39, 8, 70),
    "volume channels-last": lambda: torch.randn(2, 5, 40, 8, 70).to(memory_format=torch.channels_last_3d),
    "sequence": lambda: torch.randn(2, 64, 3000),
    "table": lambda: torch.randn(4000, 67),
    "strided": lambda: torch.randn(2, 64, 40, 160)[..., ::2],
    "some channels": lambda: torch.randn(2, 128, 40, 80)[:, :64],
    "no examples": lambda: torch.randn(0, 64, 4, 4),
}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_norm_in_place_has_the_values_of_pytorchs(layout, dtype, affine):
    torch.manual_seed(0)
    x = LAYOUTS[layout]().to(dtype)
    n = x.shape[1]
    mean, variance = torch.randn(n, dtype=dtype), torch.rand(n, dtype=dtype) + 0.5
    weight, bias = (torch.randn(n, dtype=dtype), torch.randn(n, dtype=dtype)) if affine else (None, None)
    wanted = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, 1e-5)
    got = torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)
    assert torch.ops.igfast.lean_batch_norm_(got, weight, bias, mean, variance, 1e-5) is got
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "odd channels-last", "sequence"])
def test_batch_norm_in_place_has_a_kernel_of_its_own(layout, dtype):
    x = LAYOUTS[layout]().to(dtype)
    mean, variance = torch.randn(x.shape[1], dtype=dtype), torch.rand(x.shape[1], dtype=dtype) + 0.5
    torch.ops.igfast.lean_batch_norm_(x.clone(), None, None, mean, variance, 1e-5)  # finds out how PyTorch rounds
    with torch.autograd.profiler.profile() as profile:
        torch.ops.igfast.lean_batch_norm_(x, None, None, mean, variance, 1e-5)
    pytorchs = [event for event in profile.function_events if event.name == "aten::native_batch_norm"]
    assert len(pytorchs) == 2  # of one example: the scales and the shifts


@pytest.mark.parametrize("layout", ["contiguous", "odd channels-last"])
@pytest.mark.parametrize("of", ["variance", "weight", "bias", "mean", "x"])
def test_special_values(layout, of):
    torch.manual_seed(0)
    x = LAYOUTS[layout]()
    n = x.shape[1]
    constants = {
        "weight": torch.randn(n),
        "bias": torch.randn(n),
        "mean": torch.randn(n),
        "variance": torch.rand(n) + 1,
    }
    special = x[0, 0, 0] if of == "x" else constants[of]
    special[:6] = torch.tensor([-1e-5, 0.0, -0.0, torch.inf, -torch.inf, torch.nan])
    wanted = F.batch_norm(x, constants["mean"], constants["variance"], constants["weight"], constants["bias"])
    torch.ops.igfast.lean_batch_norm_(x, *(constants[name] for name in ("weight", "bias", "mean", "variance")), 1e-5)
    assert torch.equal(x.isnan(), wanted.isnan())
    assert torch.equal(x.nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("layout", ["contiguous", "odd channels-last"])
def test_zeros_keep_their_signs(layout):
    torch.manual_seed(0)
    zeros = torch.tensor([0.0, -0.0, 1.0, -1.0])
    x = LAYOUTS[layout]()
    x.copy_(zeros[torch.randint(4, x.shape)])
    weight, bias, mean = (zeros[torch.randint(4, x.shape[1:2])] for _ in range(3))
    variance, eps = torch.ones(x.shape[1]), 1e-12  # so that the scale is 1; 0 is not allowed before torch 2.13
    wanted = F.batch_norm(x, mean, variance, weight, bias, eps=eps)
    torch.ops.igfast.lean_batch_norm_(x, weight, bias, mean, variance, eps)
    assert (wanted == 0).sum() > 1000
    assert torch.equal(x, wanted)
    assert torch.equal(x.signbit(), wanted.signbit())


@pytest.mark.parametrize("n", [32, 128])
def test_constants_of_another_length_are_refused_before_anything_is_written(n):
    x = torch.randn(2, 64, 64, 64)
    before, constant = x.clone(), torch.ones(n)
    with pytest.raises(RuntimeError, match=f"running_mean should contain 64 elements not {n}"):
        torch.ops.igfast.lean_batch_norm_(x, constant, constant, constant, constant, 1e-5)
    assert torch.equal(x, before)


def test_under_a_dispatch_mode():
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    x, mean, variance = LAYOUTS["contiguous"](), torch.randn(64), torch.rand(64) + 0.5
    wanted = F.batch_norm(x, mean, variance)
    with Mode():
        torch.ops.igfast.lean_batch_norm_(x, None, None, mean, variance, 1e-5)
    assert torch.equal(x, wanted)


def test_constants_that_are_not_dense():
    # PyTorch has another formula for them, which rounds differently.
    x = LAYOUTS["contiguous"]()
    constants = torch.rand(64, 4) + 0.5
    weight, bias, mean, variance = constants.unbind(1)
    wanted = F.batch_norm(x, mean, variance, weight, bias)
    torch.ops.igfast.lean_batch_norm_(x, weight, bias, mean, variance, 1e-5)
    assert torch.equal(x, wanted)


def test_batch_norm_in_place_is_differentiable():
    mean, variance, weight = torch.randn(3), torch.rand(3) + 0.5, torch.randn(3)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (wanted,) = torch.autograd.grad((F.batch_norm(x, mean, variance, weight) ** 2).sum(), x)
    y = torch.ops.igfast.lean_batch_norm_(x * 1, weight, None, mean, variance, 1e-5)
    (got,) = torch.autograd.grad((y**2).sum(), x)
    assert torch.allclose(got, wanted, rtol=1e-5)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        torch.ops.igfast.lean_batch_norm_(x, weight, None, mean, variance, 1e-5)


# Function, shapes of input and weight, options; gradients that are larger than the weight, and smaller ones.
CONVOLUTIONS = [
    (F.conv2d, (2, 3, 40, 40), (64, 3, 3, 3), {"padding": 1}),
    (F.conv2d, (1, 64, 5, 5), (64, 64, 3, 3), {"padding": 1}),
    (F.conv2d, (2, 64, 40, 40), (64, 64, 3, 3), {"padding": 1}),
    (F.conv2d, (1, 64, 32, 32), (32, 64, 1, 1), {"stride": 2}),
    (F.conv2d, (1, 256, 8, 8), (8, 256, 1, 1), {}),
    (F.conv2d, (2, 8, 20, 20), (8, 1, 3, 3), {"groups": 8}),
    (F.conv1d, (2, 4, 300), (6, 2, 5), {"groups": 2}),
    (F.conv3d, (1, 3, 6, 12, 12), (16, 3, 2, 3, 3), {}),
]


def constants_of(n):
    """Weight, bias, mean and variance."""
    weight, bias, mean, variance = (torch.rand(n, dtype=torch.float64) + 0.5 for _ in range(4))
    return nn.Parameter(weight), nn.Parameter(bias), mean, variance


def batch_norm(x, constants):
    weight, bias, mean, variance = constants
    return F.batch_norm(x, mean, variance, weight, bias)


def batch_norm_(x, constants):
    return torch.ops.igfast.lean_batch_norm_(x, *constants, 1e-5)


@pytest.mark.parametrize(("convolution", "shape", "kernel", "options"), CONVOLUTIONS)
def test_a_convolution_takes_in_the_batch_norm_of_its_result(convolution, shape, kernel, options):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    x = (x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x).requires_grad_()
    weight, constants = nn.Parameter(torch.randn(kernel, dtype=torch.float64)), constants_of(kernel[0])
    with LeanMode():
        y = batch_norm_(convolution(x, weight, None, **options), constants)
    assert y.grad_fn.name().endswith("ConvolutionBackward")
    wanted = batch_norm(convolution(x, weight, None, **options), constants)
    assert torch.equal(y, wanted)
    factor = torch.randn_like(y)
    (grad,) = torch.autograd.grad((y * factor).sum(), x, retain_graph=True)
    (wanted_grad,) = torch.autograd.grad((wanted * factor).sum(), x)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-12, atol=1e-12)
    for constant in (weight, *constants[:2]):
        with pytest.raises(NotImplementedError, match="keeps nothing for the gradient of a weight"):
            torch.autograd.grad(y.sum(), constant, retain_graph=True)


def test_a_convolution_takes_in_one_batch_norm():
    x = torch.randn(2, 2, 9, 9, dtype=torch.float64, requires_grad=True)
    weight, constants = torch.randn(4, 2, 3, 3, dtype=torch.float64), constants_of(4)
    with LeanMode():
        y = batch_norm_(batch_norm_(F.conv2d(x, weight), constants), constants)
    assert y.grad_fn.name().endswith("BatchNormBackward")
    wanted = batch_norm(batch_norm(F.conv2d(x, weight), constants), constants)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    (wanted_grad,) = torch.autograd.grad(wanted.square().sum(), x)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-12, atol=1e-12)


KNOWN = {
    "a hook on the result": lambda y, seen: y.register_hook(seen.append),
    "a result that retains its gradient": lambda y, seen: y.retain_grad(),
    "a hook on the node": lambda y, seen: y.grad_fn.register_hook(lambda grads, outputs: seen.extend(outputs)),
    "a hook before the node": lambda y, seen: y.grad_fn.register_prehook(lambda grads: seen.extend(grads)),
    "a node that is kept": lambda y, seen: seen.append(y.grad_fn),
    "a result that is read elsewhere": lambda y, seen: seen.append(y + 1),
    "a result that was read elsewhere": lambda y, seen: (y + 1).detach(),
}


@pytest.mark.parametrize("how", KNOWN)
def test_a_convolution_that_somebody_knows_of_takes_nothing_in(how):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 9, 9, dtype=torch.float64, requires_grad=True)
    weight, constants = torch.randn(4, 2, 3, 3, dtype=torch.float64), constants_of(4)

    def evaluate(mode, norm):
        seen = []
        with mode:
            y = F.conv2d(x, weight)
        KNOWN[how](y, seen)
        y = norm(y, constants)
        elsewhere, n = sum(part.sum() for part in seen if isinstance(part, torch.Tensor)), len(seen)
        (grad,) = torch.autograd.grad(y.square().sum() + elsewhere, x)
        return grad, seen[n:], y.grad_fn.name()

    grad, seen, name = evaluate(LeanMode(), batch_norm_)
    wanted_grad, wanted_seen, _ = evaluate(nullcontext(), batch_norm)
    assert name.endswith("BatchNormBackward")
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen, wanted_seen, rtol=1e-12, atol=1e-12)
