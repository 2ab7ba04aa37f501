"""What works in Captum works here: dtypes, layouts, shapes that are not the usual ones."""

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import igfast
from tests import models
from tests.oracle import naive_integrated_gradients, relative_difference


def both(forward, inputs, **arguments):
    return (
        igfast.IntegratedGradients(forward).attribute(inputs, **arguments),
        captum.attr.IntegratedGradients(forward).attribute(inputs, **arguments),
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integers_into_a_float_model(dtype):
    x = torch.tensor([[1, 2, 200], [4, 5, 6]]).to(dtype)
    got, wanted = both(models.mlp().float(), x, target=0, baselines=0)
    assert got.dtype is torch.float32
    assert relative_difference(got, wanted) <= 1e-5


def test_unsigned_integers_below_the_baseline_do_not_wrap():
    x = torch.tensor([[1, 2, 3]], dtype=torch.uint8)
    got = igfast.IntegratedGradients(lambda x: x.sum(1)).attribute(x, baselines=torch.full_like(x, 5))
    torch.testing.assert_close(got, torch.tensor([[-4.0, -3.0, -2.0]]))


def test_integer_baseline_for_float_input():
    x = torch.randn(2, 3, dtype=torch.float64)
    got, wanted = both(models.mlp(), x, target=0, baselines=torch.ones(2, 3, dtype=torch.int64))
    assert relative_difference(got, wanted) <= 1e-7


def test_baseline_of_another_float_dtype_is_converted():
    x, baseline = torch.randn(2, 3), torch.randn(2, 3, dtype=torch.float64)
    explainer = igfast.IntegratedGradients(models.mlp().float())
    got = explainer.attribute(x, baseline, 0)
    assert got.dtype is torch.float32
    assert torch.equal(got, explainer.attribute(x, baseline.float(), 0))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("multiply_by_inputs", [True, False])
def test_half_models(dtype, bound, multiply_by_inputs):
    network, x = models.mlp().to(dtype), torch.randn(2, 3).to(dtype)
    got, delta = igfast.IntegratedGradients(network, multiply_by_inputs).attribute(
        x, target=0, return_convergence_delta=True
    )
    wanted = captum.attr.IntegratedGradients(network, multiply_by_inputs).attribute(x, target=0)
    assert got.dtype is delta.dtype is wanted.dtype is torch.float32
    exact = naive_integrated_gradients(
        lambda x: network.double()(x)[:, 0],
        (x.double(),),
        (torch.zeros(2, 3).double(),),
        50,
        multiply_by_inputs=multiply_by_inputs,
    )
    assert relative_difference(got, exact[0]) <= bound


def test_autocast():
    network, x = models.convnet().float(), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, wanted = both(network, x, target=0)
    assert got.dtype is torch.float32
    assert relative_difference(got, wanted) <= 1e-2


def magnitude(x):
    return (x * (1 + 2j)).abs().pow(2).sum(1)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_input_with_a_real_output(dtype):
    x = torch.randn(2, 3, dtype=dtype)
    (got, delta), (wanted, wanted_delta) = both(magnitude, x, baselines=0.3, return_convergence_delta=True)
    assert got.dtype is delta.dtype is dtype
    assert relative_difference(got, wanted) <= 1e-5
    torch.testing.assert_close(delta, wanted_delta, rtol=0, atol=1e-4)


FLOAT32 = 1e-5  # relative; channels-last path points are a choice up to float32


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, FLOAT32)])
@pytest.mark.parametrize("baseline", ["same layout", "contiguous", "number"])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.permute(0, 1, 3, 2),
        lambda x: x.permute(3, 0, 1, 2)[:3].permute(1, 2, 3, 0)[:, :, :, [0, 1, 2, 0, 1, 2, 0, 1]],
        lambda x: x[:1].expand(4, -1, -1, -1),
        lambda x: torch.cat([x, x])[::2],
    ],
)
def test_layouts(change, baseline, dtype, bound):
    network = models.convnet().to(dtype)
    x = change(torch.randn(4, 3, 8, 8, dtype=dtype))
    start = {"number": 0.2, "contiguous": torch.randn(4, 3, 8, 8, dtype=dtype), "same layout": x * 0.3}[baseline]
    got = igfast.IntegratedGradients(network).attribute(x, start, 1, n_steps=7, internal_batch_size=3)
    full = start if isinstance(start, torch.Tensor) else torch.full_like(x, start)
    wanted = naive_integrated_gradients(lambda x: network(x)[:, 1], (x,), (full,), 7)
    assert got.is_contiguous()
    assert relative_difference(got, wanted[0]) <= bound


class Views(nn.Module):
    """Flattens by `view`, which refuses channels-last path points. A convolution would gain from them."""

    def __init__(self, convolves=False):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.convolution = nn.Linear(3 * 64, 4), nn.Conv2d(3, 4, 3)
        self.convolves, self.layouts = convolves, []

    def forward(self, x):
        self.layouts.append(x.is_contiguous())
        convolved = self.convolution(x).mean((2, 3)) if self.convolves else 0
        return self.linear(torch.tanh(x.view(x.shape[0], -1))) + convolved


@pytest.mark.parametrize("convolves", [False, True])
def test_model_that_views_its_input_keeps_its_layout(convolves):
    network, x = Views(convolves), torch.randn(1, 3, 8, 8)
    got = igfast.IntegratedGradients(network).attribute(x, target=0, n_steps=12, internal_batch_size=1)
    assert (False in network.layouts) is convolves  # tried where a convolution would gain
    wanted = naive_integrated_gradients(lambda x: network(x)[:, 0], (x,), (x * 0,), 12)
    assert relative_difference(got, wanted[0]) <= FLOAT32


class ViewsWithGradient(Views):
    """Refuses channels-last path points only where a gradient is asked for, after the comparison of layouts."""

    def forward(self, x):
        return super().forward(x if torch.is_grad_enabled() else x.contiguous())


@pytest.mark.parametrize("lean", ["auto", True, False])
def test_model_that_views_its_input_after_the_comparison_of_layouts(lean):
    network, x = ViewsWithGradient(convolves=True), torch.randn(1, 3, 8, 8)
    explainer = igfast.IntegratedGradients(network, lean=lean)
    got = explainer.attribute(x, target=0, n_steps=12, internal_batch_size=1)
    wanted = naive_integrated_gradients(lambda x: network(x)[:, 0], (x,), (x * 0,), 12)
    assert relative_difference(got, wanted[0]) <= FLOAT32


def test_model_that_views_its_input_and_the_ends():
    network, x = Views(convolves=True), torch.randn(4, 3, 8, 8)
    explainer = igfast.IntegratedGradients(network)
    got, delta = explainer.attribute(x, target=0, n_steps=3, internal_batch_size=4, return_convergence_delta=True)
    wanted = naive_integrated_gradients(lambda x: network(x)[:, 0], (x,), (x * 0,), 3)
    assert relative_difference(got, wanted[0]) <= FLOAT32
    assert delta.shape == (4,)


def checks_layout(x):
    assert x.is_contiguous()
    return x.flatten(1).sin().sum(1)


def reads_by_strides(x):
    """Reads memory as if it were contiguous: other numbers, and no error, for channels-last points."""
    rows = x.as_strided((x.shape[0], 3 * 64), (3 * 64, 1))
    return (rows.sin() * torch.arange(3 * 64, dtype=x.dtype)).sum(1)


@pytest.mark.parametrize("reads", [checks_layout, reads_by_strides])
def test_models_that_rely_on_the_callers_layout(reads):
    weight = torch.randn(4, 3, 3, 3)

    def forward(x):
        return reads(x) + F.conv2d(x, weight).sum((1, 2, 3))  # a convolution would gain from another layout

    x = torch.randn(1, 3, 8, 8)
    for _ in range(2):  # the second call uses what the first one remembered
        got, report = igfast.IntegratedGradients(forward).attribute(
            x, n_steps=12, internal_batch_size=1, return_report=True
        )
        assert not report.channels_last
        wanted = naive_integrated_gradients(forward, (x,), (x * 0,), 12)
        assert relative_difference(got, wanted[0]) <= FLOAT32


@pytest.mark.filterwarnings("ignore:path points are taken to be independent")
def test_channels_last_without_memory_to_compare_is_said():
    weight = torch.randn(4, 3, 3, 3)

    def forward(x):
        h = F.conv2d(x, weight)
        if not torch.is_grad_enabled():
            raise MemoryError("not enough memory")
        return h.sin().sum((1, 2, 3))

    x = torch.randn(1, 3, 8, 8)
    with pytest.warns(igfast.IgfastWarning, match="channels-last path points, without memory to compare"):
        got, report = igfast.IntegratedGradients(forward).attribute(x, n_steps=12, return_report=True)
    assert report.channels_last
    wanted = naive_integrated_gradients(forward, (x,), (x * 0,), 12)
    assert relative_difference(got, wanted[0]) <= FLOAT32


def test_a_float64_image_beside_a_float32_one_keeps_its_layout():
    seen = set()

    def forward(a, b):
        seen.add((a.is_contiguous(), b.is_contiguous()))
        return (
            F.conv2d(a, torch.ones(2, 3, 3, 3))
            .double()
            .mul(F.conv2d(b, torch.ones(2, 3, 3, 3).double()))
            .sum((1, 2, 3))
        )

    a, b = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    igfast.IntegratedGradients(forward).attribute((a, b), n_steps=12)
    assert seen == {(True, True), (False, True)}  # the latter is the float32 one, channels-last


def test_one_dimensional_input():
    x = torch.randn(3, dtype=torch.float64)
    got, wanted = both(lambda x: x.sin() * 3, x, baselines=0.1)
    assert got.shape == (3,)
    assert relative_difference(got, wanted) <= 1e-7


@pytest.mark.parametrize("internal_batch_size", [None, 4])
def test_no_examples(internal_batch_size):
    x = torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 2, 4, dtype=torch.float16)
    explainer = igfast.IntegratedGradients(models.TwoInputs())
    (a, b), delta = explainer.attribute(
        x, target=[], internal_batch_size=internal_batch_size, return_convergence_delta=True
    )
    assert (a.shape, a.dtype) == ((0, 3), torch.float64)
    assert (b.shape, b.dtype) == ((0, 2, 4), torch.float32)
    assert delta.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("multiply_by_inputs", [True, False])
def test_no_examples_of_other_kinds(dtype, multiply_by_inputs):
    x = torch.zeros(0, 3, dtype=dtype)
    assert igfast.IntegratedGradients(magnitude, multiply_by_inputs).attribute(x).shape == (0, 3)


def pairs(a, b):
    """Every row of `a` has two rows of `b`."""
    return (a.unsqueeze(1) * b.reshape(a.shape[0], 2, 3)).pow(3).flatten(1)


@pytest.mark.parametrize("internal_batch_size", [None, 1])
def test_inputs_with_different_numbers_of_rows(internal_batch_size):
    inputs = torch.randn(2, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    baselines = torch.randn(1, 3, dtype=torch.float64), 0.5
    got = igfast.IntegratedGradients(pairs).attribute(inputs, baselines, 1, internal_batch_size=internal_batch_size)
    wanted = captum.attr.IntegratedGradients(pairs).attribute(inputs, baselines, 1)
    assert [g.shape for g in got] == [(2, 3), (4, 3)]
    assert relative_difference(got, wanted) <= 1e-7


def test_inputs_with_different_numbers_of_rows_go_in_whole_steps():
    rows = []

    def forward(a, b):
        rows.append(a.shape[0])
        return pairs(a, b)

    inputs = torch.randn(2, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    igfast.IntegratedGradients(forward).attribute(inputs, target=1, n_steps=6, internal_batch_size=4)
    assert rows == [2] * 7  # the caller's own call, and six steps


def test_meta_tensors():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
        x = torch.zeros(2, 3)
    got, delta = igfast.IntegratedGradients(network).attribute(x, target=0, return_convergence_delta=True)
    assert got.is_meta
    assert (got.shape, got.dtype) == (x.shape, torch.float32)
    assert delta.shape == (2,)


@pytest.mark.parametrize("shape", [(1, 3), (4, 3), ()])
def test_additional_arguments_of_one_row_each_row_or_none(shape):
    x, arg = torch.randn(4, 3, dtype=torch.float64), torch.rand(shape, dtype=torch.float64)
    got = igfast.IntegratedGradients(lambda x, s: (x * s).pow(2).sum(1)).attribute(
        x, additional_forward_args=arg, internal_batch_size=3
    )
    wanted = naive_integrated_gradients(lambda x: (x * arg).pow(2).sum(1), (x,), (x * 0,), 50)
    assert relative_difference(got, wanted[0]) <= 1e-12


def test_custom_gradient_func_as_captums_own_classes_use_it():
    from captum._utils.gradient import construct_neuron_grad_fn

    network, x = models.convnet(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    explainers = igfast.IntegratedGradients(network), captum.attr.IntegratedGradients(network)
    for explainer in explainers:
        explainer.gradient_func = construct_neuron_grad_fn(network[0], (1, 2, 3))
    got, wanted = (explainer.attribute(x, n_steps=5) for explainer in explainers)
    assert relative_difference(got, wanted) <= 1e-7


def test_plain_custom_gradient_func():
    """One that does not turn gradients on by itself, on joint inputs too."""

    def gradient_func(forward_fn, inputs, target_ind, additional_forward_args):
        return torch.autograd.grad(forward_fn(*inputs)[:, 1].sum(), inputs)

    inputs = torch.randn(2, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    explainer = igfast.IntegratedGradients(pairs)
    wanted = explainer.attribute(inputs, target=1, n_steps=6)
    explainer.gradient_func = gradient_func
    got = explainer.attribute(inputs, n_steps=6, internal_batch_size=2)
    assert relative_difference(got, wanted) <= 1e-7  # Captum's own code, with nodes and weights of float32


def test_model_that_differentiates_inside_its_forward():
    """Forces of an energy: the path points must be leaves that the model can differentiate itself."""

    def forces(x):
        energy = (x**4).sum()
        energy.backward(create_graph=True)
        return x.grad.clone()

    x = torch.randn(2, 3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="create_graph"), pytest.warns(igfast.IgfastWarning, match="differentiates"):
        got = igfast.IntegratedGradients(forces).attribute(x, target=0)
    wanted = torch.zeros_like(x)
    wanted[:, 0] = 4 * x[:, 0] ** 3
    torch.testing.assert_close(got, wanted)


IDS = torch.tensor([[5, 3, 9], [7, 7, 4]])


@pytest.mark.parametrize(
    ("x", "baseline"),
    [(IDS, 0.5), (IDS, torch.full_like(IDS, 1).double() / 2), (IDS.to(torch.uint8), -1), (IDS > 2, 2)],
)
def test_a_baseline_that_the_inputs_dtype_does_not_hold(x, baseline):
    network = nn.Sequential(nn.Embedding(256, 4), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(igfast.BaselineError, match=r"baselines\[0\] must hold numbers of the input's dtype"):
        igfast.LayerIntegratedGradients(network, network[0]).attribute(x, baseline, 1)


def test_a_joint_example_in_a_model_that_sets_its_own_grad_mode():
    class Sentence(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.words, self.head = nn.Embedding(9, 4).double(), nn.Linear(4, 2).double()

        def forward(self, ids, mask):
            with torch.enable_grad():
                words = self.words(ids)
                return self.head((mask @ words).tanh().mean(dim=1))

    network, ids = Sentence(), torch.tensor([[1, 2, 3, 4]])
    mask = torch.rand(4, 4, dtype=torch.float64)
    got, wanted = (
        library.LayerIntegratedGradients(network, network.words).attribute(ids, 0, 1, mask, n_steps=20)
        for library in (igfast, captum.attr)
    )
    assert relative_difference(got, wanted.detach()) <= 1e-7
