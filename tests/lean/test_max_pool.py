"""Max pooling by kernels of its own against PyTorch's: values and winners, in every layout and type."""

import pytest
import torch
import torch.nn.functional as F

from igfast.ops._load import kernels_loaded

assert kernels_loaded()
from igfast.lean.mode import LeanMode  # noqa: E402
from tests.ops import cases  # noqa: E402

POOLS = {2: F.max_pool2d, 3: F.max_pool3d}
WINDOWS = [
    ((2, 19, 24, 41), {"kernel_size": 2}),
    ((1, 3, 23, 41), {"kernel_size": 2, "ceil_mode": True}),
    ((2, 64, 16, 70), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((2, 33, 9, 40), {"kernel_size": 3, "stride": 1, "padding": 1}),
    ((2, 5, 20, 37), {"kernel_size": (3, 5), "stride": (2, 3), "padding": (1, 2), "ceil_mode": True}),
    ((2, 17, 20, 70), {"kernel_size": (2, 3), "stride": 1, "padding": 1, "dilation": (3, 2)}),
    ((2, 17, 12, 50), {"kernel_size": (4, 2), "stride": (1, 4), "padding": (2, 0), "dilation": (1, 3)}),
    ((1, 16, 30, 41), {"kernel_size": 2, "stride": 5}),  # cells that no window reaches
    ((1, 16, 20, 20), {"kernel_size": 16, "stride": 1}),  # as many cells as a byte can number
    ((1, 8, 1, 90), {"kernel_size": (1, 4), "stride": (1, 2), "padding": (0, 2)}),
    ((2, 18, 7, 9, 41), {"kernel_size": 2}),
    ((2, 3, 8, 9, 40), {"kernel_size": (2, 3, 3), "stride": (1, 2, 2), "padding": (0, 1, 1), "ceil_mode": True}),
    ((1, 16, 9, 7, 20), {"kernel_size": 2, "stride": 1, "padding": (1, 0, 1), "dilation": (2, 1, 3)}),
]


def both_ways(x, options, lean):
    """Values, and for every output a gradient of its own, in the input."""
    leaf = x.detach().requires_grad_()
    with LeanMode() if lean else torch.enable_grad():
        output = POOLS[x.dim() - 2](leaf, **options)
    assert ("igfast" in output.grad_fn.name()) == lean
    weight = torch.arange(output.numel(), dtype=x.dtype).view(output.shape) % 7 + 1  # sums are exact in 8 bits too
    (grad,) = torch.autograd.grad(output, leaf, weight)
    return output.detach(), grad


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("shape", "options"), WINDOWS)
def test_values_and_winners_are_pytorchs(shape, options, dtype):
    torch.manual_seed(0)
    x = torch.randint(-20, 20, shape).to(dtype)  # with many ties
    channels_last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    for of_layout in (x, x.contiguous(memory_format=channels_last), x.transpose(0, -1).contiguous().transpose(0, -1)):
        (wanted, wanted_grad), (output, grad) = (both_ways(of_layout, options, lean) for lean in (False, True))
        assert torch.equal(output, wanted)
        assert output.stride() == wanted.stride()
        assert torch.equal(grad, wanted_grad)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_special_values(layout, dtype):
    torch.manual_seed(0)
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 0.0, 1.0])
    x = special[torch.randint(len(special), (2, 21, 30, 40))].to(dtype).contiguous(memory_format=layout)
    x[:, :, :9] = -torch.inf
    options = {"kernel_size": 3, "stride": 2, "padding": 1}
    (wanted, wanted_grad), (output, grad) = (both_ways(x, options, lean) for lean in (False, True))
    torch.testing.assert_close(output, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(grad, wanted_grad)


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("shape", [(2, 20, 9, 12), (2, 20, 6, 7, 8)])
def test_gradients_of_overlapping_windows_are_added_up_in_pytorchs_order(shape, expanded):
    torch.manual_seed(0)
    x, pool = torch.randint(2, shape).float(), POOLS[len(shape) - 2]  # most windows share their winner with others
    for layout in (torch.contiguous_format, torch.channels_last if len(shape) == 4 else torch.channels_last_3d):
        leaf = x.contiguous(memory_format=layout).requires_grad_()
        plain = pool(leaf, 3, 1, 1)
        with LeanMode():
            lean = pool(leaf, 3, 1, 1)
        weight = torch.randn(1).expand(plain.shape) if expanded else torch.randn_like(plain)
        (wanted,), (got,) = (torch.autograd.grad(output, leaf, weight) for output in (plain, lean))
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_in_another_layout(memory_format):
    x = torch.randn(2, 20, 8, 8, requires_grad=True)
    other = torch.channels_last if memory_format is torch.contiguous_format else torch.contiguous_format
    weight = torch.randn(2, 20, 4, 4)
    (wanted,) = torch.autograd.grad(F.max_pool2d(x, 2), x, weight)
    with LeanMode():
        output = F.max_pool2d(x.contiguous(memory_format=memory_format), 2)
    (got,) = torch.autograd.grad(output, x, weight.contiguous(memory_format=other))
    assert torch.equal(got, wanted)


WRONG = [
    {"kernel_size": 0},
    {"kernel_size": 2, "stride": 0},
    {"kernel_size": 2, "padding": 2},
    {"kernel_size": 2, "padding": -1},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 2, "dilation": 0},
]


@pytest.mark.parametrize("options", WRONG)
def test_a_wrong_window_is_pytorchs_to_refuse(options):
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    with pytest.raises((RuntimeError, ValueError)) as plain:
        F.max_pool2d(x, **options)
    with LeanMode() as mode, pytest.raises(type(plain.value)) as lean:
        F.max_pool2d(x, **options)
    assert str(lean.value) == str(plain.value)
    assert not mode.swapped
    window = {"stride": 1, "padding": 0, "dilation": 1, **options}
    numbers = [[window[name]] * 2 for name in ("kernel_size", "stride", "padding", "dilation")]
    with pytest.raises(ValueError, match="lean_max_pool: kernel, stride and dilation must be positive"):
        torch.ops.igfast.lean_max_pool(x, *numbers, False)


@pytest.mark.parametrize(("batch", "channels"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_nothing_and_one(batch, channels):
    x = torch.randn(batch, channels, 6, 6, requires_grad=True)
    outcomes = []
    for mode in (torch.enable_grad(), LeanMode()):
        with mode:
            try:
                outcomes.append(F.max_pool2d(x, 2).shape)
            except RuntimeError as error:
                outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
    output = torch.ops.igfast.lean_max_pool(x, *[[2, 2]] * 2, [0, 0], [1, 1], False)
    assert torch.autograd.grad(output.sum(), x)[0].shape == x.shape
