import pytest
import torch

from igfast import ops
from igfast.ops import reference
from tests.ops.cases import ACC_TOLERANCE, DTYPES, LAYOUTS, SHAPES, channels_last, contiguous, rows


def accumulator(shape, dtype, layout=contiguous):
    return layout(shape, ops.accumulator_dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(shape, layout, dtype):
    example, _, weight = rows(shape[0])
    grads = layout((9, *shape[1:]), dtype)
    for acc_layout in (contiguous, channels_last):
        acc = accumulator(shape, dtype, acc_layout)
        wanted = acc.clone()
        ops.accumulate_(acc, grads, example, weight)
        reference.accumulate_(wanted, grads, example, weight)
        torch.testing.assert_close(acc, wanted, rtol=ACC_TOLERANCE[dtype], atol=ACC_TOLERANCE[dtype])


def test_formula_by_hand():
    acc = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    grads = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    ops.accumulate_(acc, grads, torch.tensor([0, 1, 0]), torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64))
    assert acc.tolist() == [[12.0, 15.0], [1.5, 2.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("feature", [0, 1023, 1024, 2499])
def test_marks_rows_that_are_not_finite(dtype, value, feature):
    grads = torch.randn(4, 2500).to(dtype)
    grads[2, feature] = value
    grads[3] = torch.finfo(dtype).max
    finite = torch.ones(4, dtype=torch.uint8)
    acc = accumulator((1, 2500), dtype, lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    ops.accumulate_(acc, grads, torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.float64), finite)
    assert finite.tolist() == [1, 1, 0, 1]


def test_leaves_marks_that_are_there():
    finite = torch.tensor([0, 1], dtype=torch.uint8)
    rows_of = torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.float64)
    ops.accumulate_(torch.zeros(1, 3), torch.ones(2, 3), *rows_of, finite)
    assert finite.tolist() == [0, 1]


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_result_does_not_depend_on_threads(layout):
    example, _, weight = rows(2)
    grads = layout((9, 3, 160, 160), torch.float32)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(torch.zeros(2, 3, 160, 160))
            ops.accumulate_(results[-1], grads, example, weight)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_nothing_to_add():
    acc = torch.ones(2, 3)
    ops.accumulate_(acc, torch.ones(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64))
    assert torch.equal(acc, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"acc": torch.zeros(2, 5, dtype=torch.float64)}, TypeError, "acc must be Float for Float, got Double"),
        ({"acc": torch.zeros(2, 4)}, ValueError, r"grads has shape \[2, 5\]"),
        ({"acc": torch.zeros(1, 1).expand(2, 5)}, ValueError, "acc must be contiguous or channels-last"),
        ({"weight": torch.zeros(3, dtype=torch.float64)}, ValueError, r"must have shape \(2\)"),
        ({"example": torch.tensor([0, 5])}, IndexError, r"example\[1\] is 5"),
        ({"finite": torch.ones(2)}, ValueError, "finite must be contiguous uint8"),
        ({"finite": torch.ones(3, dtype=torch.uint8)}, ValueError, r"of shape \(2\)"),
    ],
)
def test_refuses(change, error, text):
    arguments = {
        "acc": torch.zeros(2, 5),
        "grads": torch.zeros(2, 5),
        "example": torch.tensor([0, 1]),
        "weight": torch.zeros(2, dtype=torch.float64),
        "finite": None,
    }
    with pytest.raises(error, match=text):
        ops.accumulate_(**{**arguments, **change})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_opcheck(dtype):
    example, _, weight = rows(2)
    acc, grads = torch.zeros(2, 3, 4, dtype=torch.float32), contiguous((9, 3, 4), dtype)
    torch.library.opcheck(torch.ops.igfast.accumulate_.default, (acc, grads, example, weight))
    finite = torch.ones(9, dtype=torch.uint8)
    torch.library.opcheck(torch.ops.igfast.accumulate_.default, (acc, grads, example, weight, finite))
