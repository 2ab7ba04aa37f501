"""Gradients of convolutions and products that take a shorter way where the numbers allow it."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from igfast.ops._load import kernels_loaded

assert kernels_loaded()
from igfast.lean._mode import LeanMode  # noqa: E402


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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("window", [(4, 4), (2, 5), (1, 4)])
def test_windows_that_tile_the_input_are_one_product(window, memory_format):
    x = torch.randn(2, 3, 20, 40, dtype=torch.float64).contiguous(memory_format=memory_format)
    kernel = torch.randn(7, 3, *window, dtype=torch.float64)
    output_weight = torch.randn(2, 7, 20 // window[0], 40 // window[1], dtype=torch.float64)
    plain, lean, calls = gradients(lambda x: F.conv2d(x, kernel, stride=window), x, output_weight)
    torch.testing.assert_close(lean, plain, rtol=1e-13, atol=1e-13)
    assert lean.stride() == plain.stride()
    assert "aten::convolution_backward" not in calls.names


@pytest.mark.parametrize(
    ("size", "side", "options"),
    [
        (20, 4, {"stride": 3}),  # windows overlap
        (21, 4, {"stride": 4}),  # a rest that no window reaches
        (20, 4, {"stride": 4, "padding": 2}),
        (20, 4, {"stride": 4, "dilation": 2}),
        (20, 4, {"stride": 4, "groups": 2}),
        (20, 2, {"stride": 2}),  # not faster
    ],
)
def test_other_windows_are_left_to_pytorch(size, side, options):
    x = torch.randn(2, 4, size, size, dtype=torch.float64)
    kernel = torch.randn(6, 4 // options.get("groups", 1), side, side, dtype=torch.float64)
    output_weight = torch.randn_like(F.conv2d(x, kernel, **options))
    plain, lean, calls = gradients(lambda x: F.conv2d(x, kernel, **options), x, output_weight)
    torch.testing.assert_close(lean, plain, rtol=1e-13, atol=1e-13)
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
