"""The CUDA kernels on the CPU against plain PyTorch: see tests/cuda/kernels.py."""

import pytest
import torch
import torch.nn.functional as F

from igfast import ops
from igfast.ops import reference
from tests.cuda import kernels
from tests.ops.cases import (
    ACC_TOLERANCE,
    DTYPES,
    SHAPES,
    TOLERANCE,
    baselines,
    contiguous,
    rows,
)

SHAPES = tuple(shape for shape in SHAPES if 0 not in shape)  # the operators return before the kernels


def shifted(tensor):
    """A copy that does not begin at a multiple of 16 bytes."""
    return torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape).copy_(tensor)


PLACES = {"aligned": torch.clone, "not aligned": shifted}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 4096), (1, 3, 16, 16)])
def test_interpolate_equals_reference(shape, place, dtype):
    example, alpha, _ = rows(shape[0])
    x = PLACES[place](contiguous(shape, dtype))
    for baseline in baselines(shape, dtype, contiguous):
        got = kernels.interpolate(x, PLACES[place](baseline), example, alpha)
        wanted = reference.interpolate(x, baseline, example, alpha)
        torch.testing.assert_close(got, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_interpolate_returns_the_ends_themselves():
    x, baseline = torch.tensor([[1e-30, float("inf")]]), torch.tensor([[1e30, 1.0]])
    alpha = torch.tensor([0.0, 1.0], dtype=torch.float64)
    out = kernels.interpolate(x, baseline, torch.zeros(2, dtype=torch.int64), alpha)
    assert torch.equal(out, torch.cat([baseline, x]))


def test_interpolate_rounds_once():
    x, baseline = torch.randn(2, 1, 4096, dtype=torch.float32)
    alpha = torch.rand(5, dtype=torch.float64)
    out = kernels.interpolate(x, baseline, torch.zeros(5, dtype=torch.int64), alpha)
    exact = baseline.double() + alpha[:, None] * (x.double() - baseline.double())
    assert torch.equal(out, exact.float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 4096), (1, 3, 16, 16), (20, 8)])
@pytest.mark.parametrize("by_sorting", [False, True])
def test_accumulate_equals_reference(by_sorting, shape, place, dtype):
    example, _, weight = rows(shape[0])
    grads = PLACES[place](contiguous((9, *shape[1:]), dtype))
    acc = contiguous(shape, ops.accumulator_dtype(dtype))
    wanted = acc.clone()
    kernels.accumulate_(acc, grads, example, weight, by_sorting=by_sorting)
    reference.accumulate_(wanted, grads, example, weight)
    torch.testing.assert_close(acc, wanted, rtol=ACC_TOLERANCE[dtype], atol=ACC_TOLERANCE[dtype])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("n", [2499, 2500])
def test_accumulate_marks_rows_that_are_not_finite(value, n):
    grads = torch.randn(4, n)
    grads[2, -1] = value
    grads[3] = torch.finfo(torch.float32).max
    finite = torch.tensor([1, 0, 1, 1], dtype=torch.uint8)
    kernels.accumulate_(torch.zeros(1, n), grads, torch.zeros(4, dtype=torch.int64), torch.zeros(4).double(), finite)
    assert finite.tolist() == [1, 0, 0, 1]


def test_accumulate_leaves_an_example_without_rows():
    acc = torch.ones(3, 8)
    kernels.accumulate_(acc, torch.ones(2, 8), torch.tensor([2, 2]), torch.ones(2).double())
    assert acc[:, 0].tolist() == [1, 1, 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 40000), (3, 8)])
def test_scale_equals_reference(shape, place, dtype):
    x = PLACES[place](contiguous(shape, dtype))
    for baseline in baselines(shape, dtype, contiguous):
        acc = contiguous(shape, ops.accumulator_dtype(dtype))
        wanted = acc.clone()
        kernels.scale_(acc, x, PLACES[place](baseline))
        reference.scale_(wanted, x, baseline)
        torch.testing.assert_close(acc, wanted, rtol=ACC_TOLERANCE[dtype], atol=ACC_TOLERANCE[dtype])


ACTIVATIONS = {
    "relu": ({}, F.relu),
    "hardtanh": ({"low": -0.5, "high": 1.5}, lambda x: F.hardtanh(x, -0.5, 1.5)),
    "leaky_relu": ({"slope": 0.1}, lambda x: F.leaky_relu(x, 0.1)),
    "threshold": ({"low": 0.25, "high": -2.0}, lambda x: F.threshold(x, 0.25, -2.0)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 7, 8, 256, 512, 2049])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gates_equal_plain_activations(name, offset, n, dtype):
    options, plain = ACTIVATIONS[name]
    x = (torch.randn(n + offset) * 2).to(dtype)[offset:].requires_grad_()  # an odd offset is not aligned
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf")])[:n]
    x.data[: len(special)] = special.to(dtype)
    y, bits, backward = kernels.gate(x.detach(), name, **options)
    wanted = plain(x)
    assert torch.equal(y.nan_to_num(123.0), wanted.nan_to_num(123.0))
    assert torch.equal(torch.signbit(y.nan_to_num()), torch.signbit(wanted.nan_to_num()))
    grad = torch.randn(n).to(dtype)
    got, wanted_grad = backward(grad), torch.autograd.grad(wanted, x, grad)[0]
    if name == "hardtanh":  # PyTorch lets the gradient of a NaN pass on CUDA, and in some places on the CPU
        wanted_grad = torch.where(x.isnan(), grad, wanted_grad)
    assert torch.equal(got, wanted_grad)
    assert bits.numel() * 8 >= n


WINDOWS = {  # kernel, stride, padding, dilation
    "apart": ((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1)),
    "squares apart": ((1, 2, 2), (1, 2, 2), (0, 1, 1), (1, 1, 1)),
    "squares": ((1, 3, 3), (1, 2, 2), (0, 1, 1), (1, 1, 1)),
    "squares without padding": ((1, 3, 3), (1, 2, 2), (0, 0, 0), (1, 1, 1)),
    "squares at each cell": ((1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1)),
    "squares with gaps": ((1, 2, 2), (1, 3, 3), (0, 0, 0), (1, 1, 1)),
    "overlapping": ((1, 3, 3), (1, 2, 1), (0, 1, 1), (1, 1, 1)),
    "dilated": ((1, 3, 3), (1, 2, 1), (0, 1, 1), (1, 2, 2)),
    "with gaps": ((3, 1, 2), (3, 1, 3), (1, 0, 1), (1, 1, 1)),
    "all dilated": ((2, 2, 3), (1, 3, 2), (1, 1, 1), (3, 2, 2)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("defined", [(), ("IGFAST_64_BIT",)], ids=["", "64 bits"])
def test_max_pools_and_their_gradients(defined, window, ceil_mode, memory_format, channels, dtype):
    x = torch.randint(-9, 9, (2, channels, 6, 7, 8)).to(dtype)  # with ties
    x[torch.rand(x.shape) < 0.03] = float("nan")
    x[torch.rand(x.shape) < 0.1] = -float("inf")
    x[0, 0] = -float("inf")
    x.requires_grad_()  # contiguous: PyTorch numbers the winners of channels-last volumes of -inf wrongly (2.13, CPU)
    wanted = F.max_pool3d(x, *WINDOWS[window], ceil_mode=ceil_mode)
    same = x.detach().contiguous(memory_format=memory_format)
    output, cells, backward = kernels.max_pool(same, wanted.shape[2:], *WINDOWS[window], defined=defined)
    torch.testing.assert_close(output, wanted.detach(), rtol=0, atol=0, equal_nan=True)
    kernel = WINDOWS[window][0]
    assert int(cells.max()) < kernel[0] * kernel[1] * kernel[2]
    grad = torch.randint(1, 9, wanted.shape).to(dtype)  # whose sums are exact
    got = backward(grad.contiguous(memory_format=memory_format))
    assert torch.equal(got, torch.autograd.grad(wanted, x, grad)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_affine", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 16, 4, 4), (3, 5, 3, 7), (2, 8, 3, 3), (1, 3, 16, 16)])
def test_batch_norms_and_their_gradients(shape, memory_format, is_affine, dtype):
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    mean, variance = torch.randn(shape[1]).to(dtype), (torch.rand(shape[1]) + 0.5).to(dtype)
    weight, bias = torch.randn(2, shape[1]).to(dtype) if is_affine else (None, None)
    leaf = x.detach().double().requires_grad_()
    exact = [None if of is None else of.double() for of in (mean, variance, weight, bias)]
    wanted = F.batch_norm(leaf, *exact, eps=1e-3)
    grad = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    (wanted_grad,) = torch.autograd.grad(wanted, leaf, grad.double())
    got = kernels.batch_norm("batch_norm", x, weight, bias, mean, variance, 1e-3)
    torch.testing.assert_close(got.double(), wanted.detach(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    got_grad = kernels.batch_norm("batch_norm_grad", grad, weight, None, None, variance, 1e-3)
    torch.testing.assert_close(got_grad.double(), wanted_grad, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_batch_norms_of_unaligned_memory():
    x = torch.randn(2 * 4 * 8 + 1)[1:].view(2, 4, 8)
    mean, variance = torch.randn(4), torch.rand(4) + 0.5
    got = kernels.batch_norm("batch_norm", x, None, None, mean, variance, 1e-5)
    torch.testing.assert_close(got, F.batch_norm(x, mean, variance))
