"""Gradients of linear maps without their rows of zeros."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from igfast.lean.mode import LeanMode


class Products(TorchDispatchMode):
    """The shapes of the left operands of matrix products."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.mm.default:
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


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
@pytest.mark.parametrize("first", [0, 5])  # column that is not zero
def test_rows_of_zeros_are_not_multiplied(first, rows, multiplied, product):
    x = torch.randn(3, 200, 128, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(150, 128, dtype=torch.float64)
    output_grad = torch.zeros(3, 200, 150, dtype=torch.float64)
    output_grad[:, rows, first:] = torch.randn(150 - first, dtype=torch.float64)
    (plain,) = torch.autograd.grad(product(x, weight), x, output_grad)
    with LeanMode():
        output = product(x, weight)
    with Products() as products:
        (lean,) = torch.autograd.grad(output, x, output_grad)
    torch.testing.assert_close(lean, plain, rtol=1e-13, atol=1e-13)
    assert products.shapes == [(multiplied, 150)]


def test_a_row_of_nan_is_multiplied():
    x, weight = torch.randn(1, 800, 100, requires_grad=True), torch.randn(100, 100)
    output_grad = torch.zeros(1, 800, 100)
    output_grad[0, 3, 7] = torch.nan
    with LeanMode():
        output = F.linear(x, weight)
    (lean,) = torch.autograd.grad(output, x, output_grad)
    assert lean.isnan().any(dim=2).nonzero().tolist() == [[0, 3]]
