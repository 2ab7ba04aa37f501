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
            sums, wanted_sums = ops.scale_(acc, x, baseline), reference.scale_(wanted, x, baseline)
            torch.testing.assert_close(acc, wanted, rtol=ACC_TOLERANCE[dtype], atol=ACC_TOLERANCE[dtype])
            # float64 sums of up to 5000 terms of size 1: rounding differs by their order, and by one rounding a term
            torch.testing.assert_close(sums, wanted_sums, rtol=1e-6, atol=1e-4 if dtype is not torch.float64 else 1e-11)


def test_formula_by_hand():
    acc = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    sums = ops.scale_(acc, torch.tensor([[3.0, 3.0], [5.0, 0.0]]), torch.full((), 1.0))
    assert acc.tolist() == [[2.0, 4.0], [12.0, -4.0]]
    assert sums.dtype is torch.float64
    assert sums.tolist() == [6.0, 8.0]


def test_sum_is_float64():
    # In float32 the ones would vanish beside 1e8.
    acc = torch.ones(1, 3001)
    acc[0, 0] = 1e8
    assert ops.scale_(acc, torch.ones(1, 3001), torch.zeros(())).tolist() == [1e8 + 3000]


def test_result_does_not_depend_on_threads():
    x, acc = torch.randn(2, 100_000), torch.randn(2, 100_000)
    sums = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sums.append(ops.scale_(acc.clone(), x, torch.zeros(())))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


def test_empty_batch():
    assert ops.scale_(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(())).shape == (0,)


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
