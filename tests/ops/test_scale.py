import pytest
import torch

from igfast import ops
from igfast.ops import reference
from tests.ops.cases import ACC_TOLERANCE, DTYPES, LAYOUTS, SHAPES, baselines, channels_last, contiguous


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(shape, layout, dtype):
    x = layout(shape, dtype)
    for acc_layout in (contiguous, channels_last):
        for baseline in baselines(shape, dtype, layout):
            acc = acc_layout(shape, ops.accumulator_dtype(dtype))
            wanted = acc.clone()
            ops.scale_(acc, x, baseline)
            reference.scale_(wanted, x, baseline)
            torch.testing.assert_close(acc, wanted, rtol=ACC_TOLERANCE[dtype], atol=ACC_TOLERANCE[dtype])


def test_formula_by_hand():
    acc = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    ops.scale_(acc, torch.tensor([[3.0, 3.0], [5.0, 0.0]]), torch.full((), 1.0))
    assert acc.tolist() == [[2.0, 4.0], [12.0, -4.0]]


def test_empty_batch():
    ops.scale_(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(()))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"acc": torch.zeros(2, 5, dtype=torch.float64)}, TypeError, "acc must be Float for Float, got Double"),
        ({"acc": torch.zeros(1, 5)}, ValueError, r"acc has shape \[1, 5\], must be that of x"),
        ({"baseline": torch.zeros(2, 4)}, ValueError, r"baseline has shape \[2, 4\]"),
    ],
)
def test_refuses(change, error, text):
    arguments = {"acc": torch.zeros(2, 5), "x": torch.zeros(2, 5), "baseline": torch.zeros(())}
    with pytest.raises(error, match=text):
        ops.scale_(**{**arguments, **change})


def test_opcheck():
    acc, x = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for baseline in baselines((2, 3, 4), torch.float32, contiguous):
        torch.library.opcheck(torch.ops.igfast.scale_.default, (acc, x, baseline))
