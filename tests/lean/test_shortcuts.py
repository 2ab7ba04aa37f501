"""Gradients of convolutions and products that take a shorter way where the numbers allow it."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from igfast.ops._load import kernels_loaded

assert kernels_loaded()
from igfast.lean._mode import LeanMode  # noqa: E402
from igfast.memory import memory_lent  # noqa: E402

IMAGES = (2, 3, 40, 40)


class Calls(TorchDispatchMode):
    """The operators that were called, and the shapes of the left operands of products."""

    def __init__(self):
        super().__init__()
        self.names, self.products = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        if function is torch.ops.aten.mm.default:
            self.products.append(tuple(args[0].shape))
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


CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def of_layouts(x):
    """Contiguous, channels-last where that exists, and neither."""
    yield x
    if x.dim() > 3:
        yield x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    yield x.transpose(0, -1).contiguous().transpose(0, -1)


# Bands of windows are of 512 KiB a thread: of several images, of parts of one, of one line.
WINDOWS = [
    ((2, 3, 40, 50), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
    ((2, 3, 33, 20), (16, 3, 3, 3), {"padding": 1}),
    ((2, 3, 33, 20), (16, 3, 3, 3), {"stride": (3, 2), "padding": (0, 2)}),
    ((1, 3, 130, 200), (16, 3, 5, 5), {"padding": 2}),
    ((2, 3, 90, 140), (16, 3, 5, 5), {"stride": (2, 1)}),
    ((1, 1, 4, 3000), (16, 1, 3, 50), {"padding": (1, 30)}),
    ((3, 2, 12, 12), (17, 2, 4, 12), {"padding": (2, 6)}),
    ((2, 3, 12, 12), (17, 3, 2, 3), {"padding": (3, 4)}),  # windows of padding alone
    ((3, 4, 9, 11), (17, 4, 2, 3), {"stride": (4, 5)}),  # cells that no window reaches
    ((2, 3, 20, 40), (16, 3, 4, 4), {"stride": 4}),
    ((2, 9, 20, 40), (16, 9, 2, 5), {"stride": (2, 5)}),
    ((2, 3, 20, 41), (16, 3, 1, 4), {"stride": (1, 4)}),
    ((2, 1, 7, 9, 11), (16, 1, 3, 3, 5), {"padding": 1}),
    ((5, 1, 9, 20, 22), (16, 1, 5, 5, 5), {"padding": 2}),
    ((1, 1, 24, 40, 44), (16, 1, 5, 5, 5), {"stride": (1, 2, 1), "padding": 2}),
    ((1, 4, 6, 30, 30), (16, 4, 2, 3, 3), {"stride": (2, 1, 1)}),
    ((1, 3, 1, 64, 64), (16, 3, 2, 7, 7), {"padding": (1, 3, 3)}),  # depth 1 within, 2 without
    ((1, 3, 2, 64, 64), (16, 3, 2, 7, 7), {"padding": (0, 3, 3)}),  # the other way round
    ((1, 3, 1, 64, 64), (16, 3, 1, 7, 7), {"padding": (1, 3, 3)}),
]


@pytest.mark.parametrize(("shape", "kernel", "options"), WINDOWS)
def test_windows_are_one_product_and_added_up(shape, kernel, options):
    convolution = CONVOLUTIONS[len(shape) - 2]
    weight = torch.randn(kernel, dtype=torch.float64)
    for x in of_layouts(torch.randn(shape, dtype=torch.float64)):
        dense = torch.randn_like(convolution(x, weight, **options).contiguous())
        for output_weight in (*of_layouts(dense), dense[:, :1].expand_as(dense)):
            plain, lean, calls = gradients(lambda x: convolution(x, weight, **options), x, output_weight)
            torch.testing.assert_close(lean, plain, rtol=1e-12, atol=1e-12)
            assert lean.stride() == x.stride()
            assert "aten::convolution_backward" not in calls.names


@pytest.mark.parametrize("channels", [256, 255])
@pytest.mark.parametrize(
    ("size", "stride"),
    [((5, 6), 1), ((9,), 2), ((5, 6), 2), ((6, 5), (1, 2)), ((7, 8), (3, 1)), ((4, 3), 5), ((3, 4, 5), (2, 3, 1))],
)
def test_windows_of_one_cell_are_one_product(channels, size, stride):
    convolution = CONVOLUTIONS[len(size)]
    x = torch.randn(2, *size, channels, dtype=torch.float64).movedim(-1, 1)
    weight = torch.randn(7, channels, *[1] * len(size), dtype=torch.float64)
    output_weight = torch.randn_like(convolution(x, weight, stride=stride).movedim(1, -1).contiguous()).movedim(-1, 1)
    plain, lean, calls = gradients(lambda x: convolution(x, weight, stride=stride), x, output_weight)
    torch.testing.assert_close(lean, plain, rtol=1e-12, atol=1e-12)
    assert lean.stride() == (x if channels == 256 else plain).stride()
    assert ("aten::convolution_backward" in calls.names) == (channels == 255)


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 256, 6, 6), (7, 256, 1, 1), {}),
        ((2, 256, 6, 6), (7, 256, 1, 1), {"stride": 2}),
        ((2, 3, 33, 20), (16, 3, 3, 3), {}),
        ((2, 64, 32, 32), (64, 64, 3, 3), {}),
    ],
)
def test_who_gets_a_gradient_may_overwrite_it(shape, kernel, options):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    with LeanMode():
        inner = x * 1
        output = F.conv2d(inner, torch.randn(kernel), **options)
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
def test_windows_of_three_by_three_cells_are_computed_by_tiles(shape, kernel, options):
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    dense = torch.randn(kernel, dtype=torch.float64)
    for weight in (dense, dense.contiguous(memory_format=torch.channels_last)):
        output_weight = torch.randn_like(F.conv2d(x, weight, **options))
        plain, lean, calls = gradients(lambda x, w=weight: F.conv2d(x, w, **options), x, output_weight)
        torch.testing.assert_close(lean, plain, rtol=1e-12, atol=1e-12)
        assert lean.stride() == plain.stride()
        assert "aten::convolution_backward" not in calls.names


def test_tiles_want_channels_last():
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


@pytest.mark.parametrize(("side", "by_tiles"), [(100, True), (90, False)])
def test_tiles_take_as_much_memory_as_the_gradient_at_most(side, by_tiles):
    x = torch.randn(1, 1800, side, side).contiguous(memory_format=torch.channels_last)  # 69 and 56 MiB; the tiles 65
    weight, output_weight = torch.randn(64, 1800, 3, 3), torch.randn(1, 64, side - 2, side - 2)
    output_weight = output_weight.contiguous(memory_format=torch.channels_last)
    plain, lean, calls = gradients(lambda x: F.conv2d(x, weight), x, output_weight)
    torch.testing.assert_close(lean, plain, rtol=1e-3, atol=1e-3)
    assert ("aten::convolution_backward" in calls.names) != by_tiles


@pytest.mark.parametrize(("channels", "by_tiles"), [(640, True), (1000, False)])
def test_tiles_of_small_images_take_what_there_are_of_them(channels, by_tiles):
    x = torch.randn(1, channels, 32, 32).contiguous(memory_format=torch.channels_last)  # 45 MiB, and 96
    weight = torch.randn(channels, channels, 3, 3) / channels
    plain, lean, calls = gradients(lambda x: F.conv2d(x, weight, padding=1), x, torch.randn_like(x))
    torch.testing.assert_close(lean, plain, rtol=1e-4, atol=1e-4)
    assert ("aten::convolution_backward" in calls.names) != by_tiles


def test_a_budget_without_room_for_tiles():
    x, weight = torch.randn(1, 640, 32, 32).contiguous(memory_format=torch.channels_last), torch.randn(640, 640, 3, 3)
    leaf, output_weight = x.requires_grad_(), torch.randn_like(x)
    with memory_lent(torch.device("cpu"), 100 * 2**20) as use:
        with LeanMode():
            output = F.conv2d(leaf, weight, padding=1)
        filled = torch.empty(50 * 2**20, dtype=torch.uint8)
        (lean,) = torch.autograd.grad(output, leaf, output_weight)
        assert use.peak() <= 100 * 2**20
    del filled
    plain = torch.autograd.grad(F.conv2d(leaf, weight, padding=1), leaf, output_weight)[0]
    assert torch.equal(lean, plain)  # which tiles would not be


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_of_fewer_bits_are_not_taken_for_convolutions(precision):
    before = torch.get_float32_matmul_precision()
    for shape, kernel in (((2, 64, 32, 32), (64, 64, 3, 3)), ((2, 256, 6, 6), (7, 256, 1, 1)), (IMAGES, (16, 3, 7, 7))):
        x, weight = torch.randn(shape).contiguous(memory_format=torch.channels_last), torch.randn(kernel)
        output_weight = torch.randn_like(F.conv2d(x, weight))
        try:
            torch.set_float32_matmul_precision(precision)
            plain, lean, calls = gradients(lambda x, w=weight: F.conv2d(x, w), x, output_weight)
        finally:
            torch.set_float32_matmul_precision(before)
        torch.testing.assert_close(lean, plain, rtol=1e-4, atol=1e-4)
        assert ("aten::convolution_backward" in calls.names) == (precision != "highest")


@pytest.mark.parametrize("mean", [0, 3])
def test_tiles_are_as_accurate_as_pytorch(mean):
    x = torch.randn(2, 70, 32, 32).contiguous(memory_format=torch.channels_last)
    weight = mean + torch.randn(130, 70, 3, 3)
    output_weight = (mean + torch.randn(2, 130, 32, 32)).contiguous(memory_format=torch.channels_last)
    plain, lean, calls = gradients(lambda x: F.conv2d(x, weight, padding=1), x, output_weight)
    exact, _, _ = gradients(lambda x: F.conv2d(x, weight.double(), padding=1), x.double(), output_weight.double())
    assert (lean - exact).norm() <= (plain - exact).norm()
    assert "aten::convolution_backward" not in calls.names


@pytest.mark.usefixtures("threads")
def test_windows_in_float32():
    x, weight = torch.randn(2, 3, 150, 150), torch.randn(16, 3, 7, 7)
    output_weight = torch.randn_like(F.conv2d(x, weight, stride=2, padding=3))
    plain, lean, calls = gradients(lambda x: F.conv2d(x, weight, stride=2, padding=3), x, output_weight)
    torch.testing.assert_close(lean, plain, rtol=1e-4, atol=1e-4)
    assert "aten::convolution_backward" not in calls.names


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 8, 20, 20), (17, 8, 4, 4), {"stride": 3}),  # not faster: too many channels
        ((2, 8, 20, 20), (17, 8, 4, 4), {"stride": (1, 4)}),
        ((2, 8, 20, 20), (17, 8, 2, 2), {"stride": 2}),
        ((2, 1, 20, 20), (17, 1, 3, 3), {}),  # windows too narrow
        ((2, 4, 20, 20), (17, 4, 1, 1), {}),
        ((2, 3, 20, 20), (15, 3, 5, 5), {}),  # too few channels without
        ((1, 1, 20, 9000), (16, 1, 4, 20), {}),  # lines too long for a cache
        ((2, 3, 200), (16, 3, 9), {}),  # one line
        ((2, 4, 20, 20), (16, 4, 4, 4), {"dilation": 2}),
        ((2, 4, 20, 20), (16, 2, 4, 4), {"groups": 2}),
        ((1, 64, 31, 33), (64, 64, 3, 3), {"padding": 1}),  # too few cells
        ((200, 64, 3, 3), (64, 64, 3, 3), {"padding": 1}),  # tiles that hang over
        ((1, 63, 40, 40), (64, 63, 3, 3), {}),  # too few channels
        ((1, 64, 40, 40), (63, 64, 3, 3), {}),
        ((1, 64, 70, 70), (64, 64, 3, 3), {"stride": 2}),
        ((1, 64, 40, 40), (64, 64, 3, 3), {"dilation": 2}),
        ((1, 128, 40, 40), (128, 64, 3, 3), {"groups": 2}),
        ((2, 256, 20, 20), (17, 256, 1, 1), {"padding": 1}),
    ],
)
def test_other_windows_are_left_to_pytorch(shape, kernel, options):
    convolution = CONVOLUTIONS[len(shape) - 2]
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(kernel, dtype=torch.float64)
    output_weight = torch.randn_like(convolution(x, weight, **options))
    if len(shape) == 4:
        x, output_weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, output_weight))
    plain, lean, calls = gradients(lambda x: convolution(x, weight, **options), x, output_weight)
    torch.testing.assert_close(lean, plain, rtol=1e-12, atol=1e-12)
    assert "aten::convolution_backward" in calls.names


def test_one_cell_is_left_to_pytorch_in_another_layout():
    x, weight = torch.randn(2, 256, 5, 6, dtype=torch.float64), torch.randn(9, 256, 1, 1, dtype=torch.float64)
    output_weight = torch.randn(2, 9, 5, 6, dtype=torch.float64)
    plain, lean, calls = gradients(lambda x: F.conv2d(x, weight), x, output_weight)
    torch.testing.assert_close(lean, plain, rtol=1e-12, atol=1e-12)
    assert "aten::convolution_backward" in calls.names


@pytest.mark.parametrize(
    ("function", "shape", "weight"),
    [
        (F.conv2d, (2, 64, 32, 32), (64, 64, 3, 3)),
        (F.conv2d, (2, 256, 6, 6), (7, 256, 1, 1)),
        (F.conv2d, IMAGES, (16, 3, 7, 7)),
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_dtypes_are_left_to_pytorch(dtype):
    x, kernel = torch.randn(2, 3, 20, 20, dtype=dtype), torch.randn(16, 3, 5, 5, dtype=dtype)
    output_weight = torch.randn_like(F.conv2d(x, kernel))
    plain, lean, calls = gradients(lambda x: F.conv2d(x, kernel), x, output_weight)
    assert torch.equal(lean, plain)
    assert "aten::convolution_backward" in calls.names


@pytest.mark.parametrize("product", [F.linear, lambda x, w: x @ torch.nn.Parameter(w.t())])
@pytest.mark.parametrize(
    ("rows", "multiplied"),
    [
        (slice(0, 1), 3),  # the first token of each of 3 texts
        (slice(40, 70), 90),
        (slice(0, 61), 600),  # too many to be worth it
        (slice(0, 200), 600),
        (slice(0, 0), 0),
    ],
)
def test_rows_of_zeros_are_not_multiplied(rows, multiplied, product):
    x = torch.randn(3, 200, 128, dtype=torch.float64)
    weight = torch.randn(150, 128, dtype=torch.float64)
    output_weight = torch.zeros(3, 200, 150, dtype=torch.float64)
    output_weight[:, rows, 5:] = torch.randn(150 - 5, dtype=torch.float64)
    output_weight[:, 0, 0] = -0.0
    plain, lean, calls = gradients(lambda x: product(x, weight), x, output_weight)
    torch.testing.assert_close(lean, plain, rtol=1e-13, atol=1e-13)
    assert calls.products == [(multiplied, 150)]


@pytest.mark.parametrize(
    ("shape", "pad", "value"),
    [
        ((2, 36, 61, 63), (0, 1, 0, 1), None),
        ((2, 36, 61, 63), (3, 2), torch.nan),
        ((2, 36, 61, 63), (2, 0, 0, 5), -1),
        ((2, 17, 8, 41, 40), (1, 1, 1, 1), 1.5),
        ((2, 17, 8, 41, 40), (1, 0, 2, 1, 0, 3), 1.5),
    ],
)
def test_a_constant_is_written_around_large_channels_last_images_alone(shape, value, pad):
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    contiguous = torch.randn(shape, requires_grad=True)
    x = contiguous.detach().contiguous(memory_format=layout).requires_grad_()
    plain = F.pad(x, pad, value=value)
    with LeanMode(), Calls() as calls:
        output = F.pad(x, pad, value=value)
        F.pad(contiguous, pad, value=value)
        F.pad(x, (-1, 1))
        F.pad(x, (0, 0))
        F.pad(x[:, :3], pad)
        F.pad(x[..., :9, :9], pad)
    assert calls.names.count("aten::constant_pad_nd") == 5
    torch.testing.assert_close(output, plain, rtol=0, atol=0, equal_nan=True)
    assert output.stride() == plain.stride()
    weight = torch.randn_like(plain)
    (wanted,), (got,) = (torch.autograd.grad(result, x, weight) for result in (plain, output))
    assert torch.equal(got, wanted)
    assert got.stride() == wanted.stride()


def test_a_constant_around_is_checked():
    x = torch.randn(1, 2, 3, 4)
    for pad in ([1], [1, -1], [1] * 10):
        with pytest.raises(ValueError, match="lean_constant_pad: pad must be pairs of numbers, none negative"):
            torch.ops.igfast.lean_constant_pad(x, pad, 0.0)
