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
    LAYOUTS,
    SHAPES,
    TOLERANCE,
    baselines,
    channels_last,
    contiguous,
    rows,
)

SHAPES = tuple(shape for shape in SHAPES if 0 not in shape)  # the operators return before the kernels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 4096), (1, 3, 16, 16)])
def test_interpolate_equals_reference(shape, layout, dtype):
    example, alpha, _ = rows(shape[0])
    x = layout(shape, dtype)
    for baseline in baselines(shape, dtype, layout):
        wanted = reference.interpolate(x, baseline, example, alpha)
        for out_layout in (contiguous, channels_last):
            out = torch.full_like(out_layout(wanted.shape, dtype), float("nan"))
            kernels.interpolate(x, baseline, example, alpha, out)
            torch.testing.assert_close(out, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_interpolate_returns_the_ends_themselves():
    x, baseline = torch.tensor([[1e-30, float("inf")]]), torch.tensor([[1e30, 1.0]])
    alpha = torch.tensor([0.0, 1.0], dtype=torch.float64)
    out = kernels.interpolate(x, baseline, torch.zeros(2, dtype=torch.int64), alpha, torch.empty(2, 2))
    assert torch.equal(out, torch.cat([baseline, x]))


def test_interpolate_rounds_once():
    x, baseline = torch.randn(2, 1, 4096, dtype=torch.float32)
    alpha = torch.rand(5, dtype=torch.float64)
    out = kernels.interpolate(x, baseline, torch.zeros(5, dtype=torch.int64), alpha, torch.empty(5, 4096))
    exact = baseline.double() + alpha[:, None] * (x.double() - baseline.double())
    assert torch.equal(out, exact.float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 4096), (1, 3, 16, 16)])
def test_accumulate_equals_reference(shape, layout, dtype):
    example, _, weight = rows(shape[0])
    grads = layout((9, *shape[1:]), dtype)
    for acc_layout in (contiguous, channels_last):
        acc = acc_layout(shape, ops.accumulator_dtype(dtype))
        wanted = acc.clone()
        kernels.accumulate_(acc, grads, example, weight)
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
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 40000), (3, 8)])
def test_scale_equals_reference(shape, layout, dtype):
    x = layout(shape, dtype)
    for baseline in baselines(shape, dtype, layout):
        acc = contiguous(shape, ops.accumulator_dtype(dtype))
        wanted = acc.clone()
        sums = kernels.scale_(acc, x, baseline)
        wanted_sums = reference.scale_(wanted, x, baseline)
        torch.testing.assert_close(acc, wanted, rtol=ACC_TOLERANCE[dtype], atol=ACC_TOLERANCE[dtype])
        scale = wanted.double().abs().flatten(1).sum(1).max() if wanted.dim() > 1 else wanted.double().abs().max()
        assert float((sums - wanted_sums).abs().max()) <= ACC_TOLERANCE[dtype] * float(scale)


ACTIVATIONS = {
    "relu": ({}, F.relu),
    "hardtanh": ({"low": -0.5, "high": 1.5}, lambda x: F.hardtanh(x, -0.5, 1.5)),
    "leaky_relu": ({"slope": 0.1}, lambda x: F.leaky_relu(x, 0.1)),
    "threshold": ({"low": 0.25, "high": -2.0}, lambda x: F.threshold(x, 0.25, -2.0)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 7, 8, 512, 2049])
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
    assert bits.numel() == (n + 7) // 8


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1)),
        ((1, 3, 3), (1, 2, 1), (0, 1, 1), (1, 1, 2)),
        ((3, 1, 2), (3, 1, 2), (1, 0, 1), (1, 1, 1)),
    ],
)
def test_pool_cells_and_back(kernel, stride, padding, dilation, memory_format):
    x = torch.randn(2, 3, 6, 7, 8).to(memory_format=memory_format)
    _, positions = F.max_pool3d(x, kernel, stride, padding, dilation, return_indices=True)
    assert positions.is_contiguous(memory_format=memory_format)
    cells = torch.full_like(positions, 255, dtype=torch.uint8)
    kernels.pool("pool_cells_from_positions", positions, cells, x.shape[2:], kernel, stride, padding, dilation)
    assert int(cells.max()) < kernel[0] * kernel[1] * kernel[2]
    back = torch.full_like(positions, -1)
    kernels.pool("pool_positions_from_cells", back, cells, x.shape[2:], kernel, stride, padding, dilation)
    assert torch.equal(back, positions)


def fma(a, b, c):
    """Rounded once; the product of two float32 numbers is exact in float64, and its sum nearly always."""
    return (a.double() * b.double() + c.double()).to(a.dtype)


NORMS = {
    "scale and shift": lambda x, scale, shift: fma(x, scale, shift),
    "centred, scaled": lambda x, mean, scale, bias: fma(x - mean, scale, bias),
    "centred first": lambda x, mean, inverse, weight, bias: fma((x - mean) * inverse, weight, bias),
    "weight first": lambda x, mean, inverse, weight, bias: fma(weight * (x - mean), inverse, bias),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", NORMS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 16, 4, 4), (3, 5, 3, 7), (2, 8, 3, 3), (1, 3, 16, 16)])
def test_batch_norms_in_place(shape, memory_format, form, dtype):
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    math = torch.float64 if dtype == torch.float64 else torch.float32
    constants = torch.randn({"scale and shift": 2, "centred, scaled": 3}.get(form, 4), shape[1]).to(math)
    wanted = NORMS[form](x.to(math), *(row[:, None, None] for row in constants)).to(dtype)
    got = kernels.normalise_(x, form, constants)
    same = (got == wanted).double().mean()
    assert same == 1 if dtype != torch.float64 else same > 0.5  # fma() above rounds twice there
    torch.testing.assert_close(got, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_batch_norms_of_unaligned_memory():
    whole = torch.randn(2 * 4 * 8 + 1)
    x = whole[1:].view(2, 4, 8)
    constants = torch.randn(2, 4)
    wanted = fma(x.clone(), constants[0][:, None], constants[1][:, None])
    assert torch.equal(kernels.normalise_(x, "scale and shift", constants), wanted)
