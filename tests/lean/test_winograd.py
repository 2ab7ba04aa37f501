"""Gradients of 3x3 convolutions by Winograd's algorithm, and the convolutions that are left to PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from igfast.ops._load import kernels_loaded

assert kernels_loaded()
from igfast.lean.mode import LeanMode  # noqa: E402
from igfast.memory.scope import memory_scope  # noqa: E402


class Calls(TorchDispatchMode):
    """The operators that were called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def gradients(function, x, weight_of_output):
    """Plain and lean, and what the lean one called."""
    leaf = x.detach().requires_grad_()
    (plain,) = torch.autograd.grad((function(leaf) * weight_of_output).sum(), leaf)
    with LeanMode():
        output = function(leaf)
    with Calls() as calls:
        (lean,) = torch.autograd.grad((output * weight_of_output).sum(), leaf)
    return plain, lean, calls


def test_who_gets_a_gradient_may_overwrite_it():
    x = torch.randn(2, 64, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    with LeanMode():
        inner = x * 1
        output = F.conv2d(inner, torch.randn(64, 64, 3, 3))
    seen = []
    inner.register_hook(lambda grad: seen.append(grad._is_view()))  # whose base would hold the memory, too
    with Calls() as calls:
        output.backward(torch.randn_like(output))
    assert seen == [False]
    assert "aten::convolution_backward" not in calls.names


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


# Bands are of up to 512 tiles.
TILES = [
    ((2, 64, 23, 24), (64, 64, 3, 3), {"padding": 1}),
    ((3, 65, 40, 31), (70, 65, 3, 3), {}),  # channels that fill no vectors
    ((1, 64, 40, 40), (64, 64, 3, 3), {"padding": 2}),
    ((1, 67, 33, 40), (64, 67, 3, 3), {"padding": (0, 3)}),  # windows of padding alone
    ((300, 64, 2, 2), (64, 64, 3, 3), {"padding": 1}),  # images of one tile
]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("shape", "kernel", "options"), TILES)
def test_winograd_equals_pytorch(shape, kernel, options):
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    dense = torch.randn(kernel, dtype=torch.float64)
    for weight in (dense, dense.contiguous(memory_format=torch.channels_last)):
        output_weight = torch.randn_like(F.conv2d(x, weight, **options))
        plain, lean, calls = gradients(lambda x, w=weight: F.conv2d(x, w, **options), x, output_weight)
        torch.testing.assert_close(lean, plain, rtol=1e-12, atol=1e-12)
        assert lean.stride() == plain.stride()
        assert "aten::convolution_backward" not in calls.names


def test_winograd_wants_channels_last():
    x, weight = torch.randn(2, 64, 32, 32, dtype=torch.float64), torch.randn(64, 64, 3, 3, dtype=torch.float64)
    last = x.contiguous(memory_format=torch.channels_last)
    one, wide = torch.randn(1, 1, 1, 1, dtype=torch.float64), torch.randn(2, 128, 32, 32, dtype=torch.float64)
    sliced = wide.contiguous(memory_format=torch.channels_last)[:, ::2]
    for leaf, grad in ((last, x), (last, one.expand_as(x)), (last, sliced), (x, last)):
        leaf = leaf.detach().requires_grad_()
        with LeanMode():
            output = F.conv2d(leaf, weight, padding=1)
        plain = torch.autograd.grad(F.conv2d(leaf, weight, padding=1), leaf, grad)[0]
        with Calls() as calls:
            lean = torch.autograd.grad(output, leaf, grad)[0]
        torch.testing.assert_close(lean, plain, rtol=1e-12, atol=1e-12)
        assert "aten::convolution_backward" in calls.names


@pytest.mark.parametrize(("side", "by_winograd"), [(100, True), (90, False)])
def test_winograd_takes_as_much_memory_as_the_gradient_at_most(side, by_winograd):
    x = torch.randn(1, 1800, side, side).contiguous(memory_format=torch.channels_last)  # 69 and 56 MiB; the tiles 65
    weight, output_weight = torch.randn(64, 1800, 3, 3), torch.randn(1, 64, side - 2, side - 2)
    output_weight = output_weight.contiguous(memory_format=torch.channels_last)
    plain, lean, calls = gradients(lambda x: F.conv2d(x, weight), x, output_weight)
    torch.testing.assert_close(lean, plain, rtol=1e-3, atol=1e-3)
    assert ("aten::convolution_backward" in calls.names) != by_winograd


@pytest.mark.parametrize(("channels", "by_winograd"), [(640, True), (1000, False)])
def test_winograd_of_a_small_image_takes_a_tile_for_each_that_it_has(channels, by_winograd):
    x = torch.randn(1, channels, 32, 32).contiguous(memory_format=torch.channels_last)  # 45 MiB, and 96
    weight = torch.randn(channels, channels, 3, 3) / channels
    plain, lean, calls = gradients(lambda x: F.conv2d(x, weight, padding=1), x, torch.randn_like(x))
    torch.testing.assert_close(lean, plain, rtol=1e-4, atol=1e-4)
    assert ("aten::convolution_backward" in calls.names) != by_winograd


def test_a_budget_without_room_for_winograd():
    x, weight = torch.randn(1, 640, 32, 32).contiguous(memory_format=torch.channels_last), torch.randn(640, 640, 3, 3)
    leaf, output_weight = x.requires_grad_(), torch.randn_like(x)
    with memory_scope(torch.device("cpu"), 100 * 2**20) as use:
        with LeanMode():
            output = F.conv2d(leaf, weight, padding=1)
        filled = torch.empty(50 * 2**20, dtype=torch.uint8)
        (lean,) = torch.autograd.grad(output, leaf, output_weight)
        assert use.peak() <= 100 * 2**20
    del filled
    plain = torch.autograd.grad(F.conv2d(leaf, weight, padding=1), leaf, output_weight)[0]
    assert torch.equal(lean, plain)  # which Winograd's would not be


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_of_fewer_bits_are_not_taken_for_convolutions(precision):
    before = torch.get_float32_matmul_precision()
    x, weight = torch.randn(2, 64, 32, 32).contiguous(memory_format=torch.channels_last), torch.randn(64, 64, 3, 3)
    output_weight = torch.randn_like(F.conv2d(x, weight))
    try:
        torch.set_float32_matmul_precision(precision)
        plain, lean, calls = gradients(lambda x: F.conv2d(x, weight), x, output_weight)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(lean, plain, rtol=1e-4, atol=1e-4)
    assert ("aten::convolution_backward" in calls.names) == (precision != "highest")


@pytest.mark.parametrize("mean", [0, 3])
def test_winograd_is_as_accurate_as_pytorch(mean):
    x = torch.randn(2, 70, 32, 32).contiguous(memory_format=torch.channels_last)
    weight = mean + torch.randn(130, 70, 3, 3)
    output_weight = (mean + torch.randn(2, 130, 32, 32)).contiguous(memory_format=torch.channels_last)
    plain, lean, calls = gradients(lambda x: F.conv2d(x, weight, padding=1), x, output_weight)
    exact, _, _ = gradients(lambda x: F.conv2d(x, weight.double(), padding=1), x.double(), output_weight.double())
    assert (lean - exact).norm() <= (plain - exact).norm()
    assert "aten::convolution_backward" not in calls.names


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((1, 64, 31, 33), (64, 64, 3, 3), {"padding": 1}),  # too few cells
        ((200, 64, 3, 3), (64, 64, 3, 3), {"padding": 1}),  # tiles that hang over
        ((1, 63, 40, 40), (64, 63, 3, 3), {}),  # too few channels
        ((1, 64, 40, 40), (63, 64, 3, 3), {}),
        ((1, 64, 70, 70), (64, 64, 3, 3), {"stride": 2}),
        ((1, 64, 40, 40), (64, 64, 3, 3), {"dilation": 2}),
        ((1, 128, 40, 40), (128, 64, 3, 3), {"groups": 2}),
    ],
)
def test_other_convolutions_are_left_to_pytorch(shape, kernel, options):
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(kernel, dtype=torch.float64)
    output_weight = torch.randn_like(F.conv2d(x, weight, **options))
    x, output_weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, output_weight))
    plain, lean, calls = gradients(lambda x: F.conv2d(x, weight, **options), x, output_weight)
    torch.testing.assert_close(lean, plain, rtol=1e-12, atol=1e-12)
    assert "aten::convolution_backward" in calls.names


@pytest.mark.parametrize(
    ("function", "shape", "weight"),
    [
        (F.conv2d, (2, 64, 32, 32), (64, 64, 3, 3)),
        (F.linear, (2, 100), (30, 100)),
        (lambda x, w: x @ w, (2, 100), (100, 30)),
    ],
)
def test_autocast_around_does_not_reach_gradients_of_what_ran_without(function, shape, weight):
    x, weight = torch.randn(shape), torch.nn.Parameter(torch.randn(weight))
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    output_weight = torch.randn_like(function(x, weight))
    wanted, _, _ = gradients(lambda x: function(x, weight), x, output_weight)
    leaf = x.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with LeanMode(), torch.autocast("cpu", enabled=False):
            output = function(leaf, weight)
        (got,) = torch.autograd.grad(output, leaf, output_weight)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
