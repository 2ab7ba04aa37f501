"""The operators on a GPU against plain PyTorch, and against igfast's own on the CPU."""

import pytest
import torch
import torch.nn.functional as F

from igfast import ops
from igfast.ops import reference
from tests.lean.calls import IMAGE, VOLUME
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


def on_gpu(tensor):
    """A copy with the same strides, gaps and repetitions included."""
    memory = tensor.untyped_storage().cuda()
    empty = torch.empty(0, dtype=tensor.dtype, device="cuda")
    return empty.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_interpolate(shape, layout, dtype):
    example, alpha, _ = rows(shape[0])
    x = layout(shape, dtype)
    for baseline in baselines(shape, dtype, layout):
        wanted = reference.interpolate(x, baseline, example, alpha)
        got = ops.interpolate(on_gpu(x), on_gpu(baseline), example.cuda(), alpha.cuda())
        torch.testing.assert_close(got.cpu(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_accumulate(shape, layout, dtype):
    example, _, weight = rows(shape[0])
    grads = layout((9, *shape[1:]), dtype)
    for acc_layout in (contiguous, channels_last):
        wanted = acc_layout(shape, ops.accumulator_dtype(dtype))
        acc, finite = on_gpu(wanted), torch.ones(9, dtype=torch.uint8, device="cuda")
        ops.accumulate_(acc, on_gpu(grads), example.cuda(), weight.cuda(), finite)
        reference.accumulate_(wanted, grads, example, weight)
        torch.testing.assert_close(acc.cpu(), wanted, rtol=ACC_TOLERANCE[dtype], atol=ACC_TOLERANCE[dtype])
        assert bool(finite.all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_accumulate_marks_rows_that_are_not_finite(dtype):
    grads = torch.randn(4, 2500).to(dtype)
    grads[2, 2499] = float("nan")
    finite = torch.ones(4, dtype=torch.uint8, device="cuda")
    acc = torch.zeros(1, 2500, dtype=ops.accumulator_dtype(dtype), device="cuda")
    example, weight = torch.zeros(4, dtype=torch.int64, device="cuda"), torch.zeros(4, device="cuda").double()
    ops.accumulate_(acc, grads.cuda(), example, weight, finite)
    assert finite.tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 300000)])
def test_scale(shape, layout, dtype):
    x = layout(shape, dtype)
    for baseline in baselines(shape, dtype, layout):
        wanted = contiguous(shape, ops.accumulator_dtype(dtype))
        acc = on_gpu(wanted)
        ops.scale_(acc, on_gpu(x), on_gpu(baseline))
        reference.scale_(wanted, x, baseline)
        torch.testing.assert_close(acc.cpu(), wanted, rtol=ACC_TOLERANCE[dtype], atol=ACC_TOLERANCE[dtype])


def test_results_are_the_same_every_time():
    x, grads = torch.randn(3, 70001, device="cuda"), torch.randn(50, 70001, device="cuda")
    example = torch.randint(0, 3, (50,), device="cuda")
    weight = torch.rand(50, device="cuda").double()
    results = []
    for _ in range(3):
        acc = torch.zeros_like(x)
        ops.accumulate_(acc, grads, example, weight)
        results.append(acc)
    for acc in results[1:]:
        assert torch.equal(acc, results[0])


GATES = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.4, 1.1),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "threshold": lambda x: F.threshold(x, 0.3, -2.0),
    "relu, inplace": lambda x: F.relu(x.clone(), inplace=True),
}
POOLS = {
    "max_pool1d": ((2, 4, 11), lambda x: F.max_pool1d(x, 3, 2, 1)),
    "max_pool2d": (IMAGE, lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "max_pool3d": (VOLUME, lambda x: F.max_pool3d(x, 2, dilation=2)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*GATES, *POOLS])
def test_lean_calls_equal_plain_ones(name, layout, dtype):
    shape, function = POOLS[name] if name in POOLS else (IMAGE, GATES[name])
    check_lean_equals_plain(function, on_gpu(layout(shape, dtype)).requires_grad_())


def check_lean_equals_plain(function, leaf):
    from igfast.lean.mode import LeanMode

    wanted = function(leaf * 1)
    grad = torch.randint_like(wanted, 1, 8)  # whose sums are exact: PyTorch adds up halves in half
    (wanted_grad,) = torch.autograd.grad(wanted, leaf, grad)
    mode = LeanMode()
    with mode:
        output = function(leaf * 1)
    assert sum(mode.swapped.values()) == 1
    assert torch.equal(output, wanted)
    torch.testing.assert_close(torch.autograd.grad(output, leaf, grad)[0], wanted_grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("shape", [(2, 64, 128, 128), (2, 37, 130, 131), (4096, 512), (2, 16, 8, 64, 65)])
def test_batch_norms_equal_those_in_float64(shape, layout, dtype):
    from igfast.lean.mode import LeanMode

    x = on_gpu(layout(shape, dtype)).requires_grad_()
    weight, bias, mean = torch.randn(3, shape[1], device="cuda", dtype=dtype)
    variance = torch.rand(shape[1], device="cuda").to(dtype) + 0.5
    leaf = x.detach().double().requires_grad_()
    wanted = F.batch_norm(leaf, *(of.double() for of in (mean, variance, weight, bias)))
    grad = torch.randn_like(x)
    mode = LeanMode()
    with mode:
        got = F.batch_norm(x, mean, variance, weight, bias)
    assert mode.swapped["batch_norm"] == 1
    torch.testing.assert_close(got.double(), wanted.detach(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    (wanted_grad,) = torch.autograd.grad(wanted, leaf, grad.double())
    (got_grad,) = torch.autograd.grad(got, x, grad)
    torch.testing.assert_close(got_grad.double(), wanted_grad, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("window", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2)])
def test_max_pools_of_large_images(window, layout, dtype):
    x = on_gpu(layout((3, 24, 93, 110), dtype)).requires_grad_()
    check_lean_equals_plain(lambda t: F.max_pool2d(t, *window), x)


@pytest.mark.large
def test_more_than_two_to_the_31_elements():
    n = 2**31 + 8
    x = torch.ones(1, n, dtype=torch.float16, device="cuda")
    example, alpha = torch.zeros(1, dtype=torch.int64, device="cuda"), torch.full((1,), 0.5, device="cuda").double()
    points = ops.interpolate(x, torch.zeros((), dtype=torch.float16, device="cuda"), example, alpha)
    assert points[0, -1].item() == 0.5
    acc = torch.zeros(1, n, device="cuda")
    ops.accumulate_(acc, points, example, alpha)
    assert acc[0, -1].item() == 0.25
