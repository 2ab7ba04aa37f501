import pytest
import torch

from igfast import ops
from igfast.ops import reference
from tests.ops.cases import DTYPES, LAYOUTS, SHAPES, TOLERANCE, baselines, channels_last, contiguous, rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(shape, layout, dtype):
    x = layout(shape, dtype)
    example, alpha, _ = rows(shape[0])
    for baseline in baselines(shape, dtype, layout):
        got = ops.interpolate(x, baseline, example, alpha)
        assert got.dtype == dtype
        assert got.is_contiguous() or layout is channels_last
        torch.testing.assert_close(
            got, reference.interpolate(x, baseline, example, alpha), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


def test_formula_by_hand():
    x = torch.tensor([[10.0, 20.0], [1.0, 2.0]])
    example, alpha = torch.tensor([1, 0, 0]), torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)
    got = ops.interpolate(x, torch.full((), 2.0), example, alpha)
    assert got.tolist() == [[1.5, 2.0], [4.0, 6.5], [8.0, 15.5]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ends_are_exact_whatever_the_other_end_holds(dtype):
    x = torch.tensor([[0.1, float("inf"), 3e4, 0.7]]).to(dtype)
    baseline = torch.tensor([[float("nan"), 0.1, -3e4, 0.3]]).to(dtype)
    got = ops.interpolate(x, baseline, torch.tensor([0, 0]), torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.equal(got[0].nan_to_num(9), baseline[0].nan_to_num(9))
    assert torch.equal(got[1], x[0])


def test_float32_points_are_correctly_rounded():
    x, baseline = torch.randn(1, 5000), torch.randn(1, 5000)
    example, alpha, _ = rows(1)
    exact = reference.interpolate(x.double(), baseline.double(), example, alpha)
    assert torch.equal(ops.interpolate(x, baseline, example, alpha), exact.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounds_every_half_number_as_torch_does(dtype):
    # From every number to itself, half way: x + 0.5 * (x - x), so all 65536 bit patterns are loaded and stored.
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).unsqueeze(0)
    got = ops.interpolate(x, torch.zeros((), dtype=dtype), torch.tensor([0]), torch.tensor([0.5], dtype=torch.float64))
    wanted = (x.float() * 0.5).to(dtype)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.nan_to_num(0), wanted.nan_to_num(0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [
        ((2, 3, 5, 7), torch.channels_last),
        ((1, 20, 3, 3), torch.channels_last),
        ((1, 2, 3, 4, 5), torch.channels_last_3d),
    ],
)
def test_points_of_channels_last_inputs_are_channels_last(shape, memory_format, layout):
    x, baseline = channels_last(shape, torch.float32), layout(shape, torch.float32)
    example, alpha, _ = rows(shape[0])
    got = ops.interpolate(x, baseline, example, alpha)
    assert got.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(got, reference.interpolate(x, baseline, example, alpha))


def test_no_rows_and_no_features():
    nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    assert ops.interpolate(torch.randn(2, 5), torch.zeros(()), *nothing).shape == (0, 5)
    assert ops.interpolate(torch.randn(0, 5), torch.zeros(()), *nothing).shape == (0, 5)


@pytest.mark.parametrize("threads", [1, 2])
def test_result_does_not_depend_on_threads(threads):
    x, (example, alpha, _) = contiguous((2, 50_000), torch.float32), rows(2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = ops.interpolate(x, torch.zeros(()), example, alpha)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got, reference.interpolate(x, torch.zeros(()), example, alpha))


def test_complex_numbers_use_the_reference():
    x, (example, alpha, _) = torch.randn(2, 5, dtype=torch.complex64), rows(2)
    got = ops.interpolate(x, torch.zeros((), dtype=torch.complex64), example, alpha)
    torch.testing.assert_close(got, x[example] * alpha.unsqueeze(1).to(torch.complex64))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"baseline": torch.zeros(2, 4)}, ValueError, r"baseline has shape \[2, 4\]"),
        ({"baseline": torch.zeros(3, 5)}, ValueError, "baseline has 3 examples, must have 1 or 2"),
        ({"baseline": torch.zeros((), dtype=torch.float64)}, TypeError, "baseline must be Float as x is, got Double"),
        ({"example": torch.tensor([0, 2])}, IndexError, r"example\[1\] is 2, must be in \[0, 2\)"),
        ({"example": torch.tensor([0, -1])}, IndexError, r"example\[1\] is -1"),
        ({"example": torch.tensor([0])}, ValueError, r"must have shape \(1\)"),
        ({"alpha": torch.zeros(2)}, TypeError, "alpha or weight float64, got Long and Float"),
    ],
)
def test_refuses(change, error, text):
    arguments = {
        "x": torch.zeros(2, 5),
        "baseline": torch.zeros(()),
        "example": torch.tensor([0, 1]),
        "alpha": torch.zeros(2, dtype=torch.float64),
    }
    with pytest.raises(error, match=text):
        ops.interpolate(**{**arguments, **change})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    example, alpha, _ = rows(2)
    for layout in LAYOUTS:
        for baseline in baselines((2, 3, 4, 4), dtype, layout):
            arguments = layout((2, 3, 4, 4), dtype), baseline, example, alpha
            torch.library.opcheck(torch.ops.igfast.interpolate.default, arguments)
