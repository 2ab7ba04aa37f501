"""Every swapped call against PyTorch's own: values bit for bit, gradients, what is kept, and what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from igfast.ops._load import kernels_loaded

assert kernels_loaded()
from igfast import _C  # noqa: E402
from igfast.lean.mode import LeanMode  # noqa: E402
from tests.lean.calls import CALLS, IMAGE  # noqa: E402
from tests.ops import cases  # noqa: E402


def evaluate(function, x, lean, seed=1):
    """The output, the gradient of a random weighting of it, and the mode."""
    mode = LeanMode()
    torch.manual_seed(seed)
    leaf = x.detach().requires_grad_()
    if lean:
        with mode:
            output = function(leaf * 1)
    else:
        output = function(leaf * 1)
    (grad,) = torch.autograd.grad((output * torch.randn_like(output)).sum(), leaf)
    return output.detach(), grad, mode


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_equals_plain(name, layout):
    shape, function = CALLS[name]
    torch.manual_seed(0)
    x = layout(shape, torch.float64)
    output, grad, mode = evaluate(function, x, lean=True)
    wanted, wanted_grad, _ = evaluate(function, x, lean=False)
    assert sum(mode.swapped.values()) == 1
    assert torch.equal(output, wanted)
    assert output.stride() == wanted.stride()
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", CALLS)
def test_keeps_less_than_its_input(name):
    # What a node holds on to is in its saved variables; a convolution's or a pool's must not be the activation.
    shape, function = CALLS[name]
    x = torch.randn(shape, dtype=torch.float64).requires_grad_()
    activation = x * 1
    kept = []

    def keep(tensor):
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        mode = LeanMode()
        mode.ignored = keep
        with mode:
            output = function(activation)
    assert sum(mode.swapped.values()) == 1
    assert output.requires_grad
    assert activation.shape not in kept


@pytest.mark.parametrize("name", CALLS)
def test_second_derivatives_and_weights_are_refused(name):
    shape, function = CALLS[name]
    x = torch.randn(shape, dtype=torch.float64).requires_grad_()
    with LeanMode():
        output = function(x * 1)
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(output.sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x, w: F.linear(x, w), (5, 5)),
        (lambda x, b: F.linear(x, torch.ones(5, 5), b), (5,)),
        (lambda x, b: F.conv1d(x, torch.ones(5, 5, 1), b), (5,)),
        (lambda x, w: x * w, (5, 5)),
        (lambda x, b: F.batch_norm(x, torch.zeros(5), torch.ones(5), torch.ones(5), b), (5,)),
    ],
)
def test_the_gradient_of_a_weight_is_refused(function, shape):
    w = torch.nn.Parameter(torch.randn(shape))
    with LeanMode() as mode:
        y = function(torch.randn(5, 5, 5).requires_grad_(), w)
    assert sum(mode.swapped.values()) == 1
    with pytest.raises(NotImplementedError, match="the gradient of a weight"):
        torch.autograd.grad(y.sum(), w)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, b: F.linear(x, torch.ones(5, 5).double(), b),
        lambda x, b: F.conv1d(x, torch.ones(5, 5, 1).double(), b),
        lambda x, b: F.batch_norm(x, *torch.ones(3, 5).double(), b),
        lambda x, b: torch.addmm(torch.nn.Parameter(b), x[0], torch.nn.Parameter(torch.ones(5, 5).double())),
    ],
)
def test_a_bias_that_depends_on_the_input(function):
    x = torch.randn(5, 5, 5, dtype=torch.float64).requires_grad_()
    (plain,) = torch.autograd.grad(function(x, x.mean((0, 1))).square().sum(), x)
    with LeanMode():
        y = function(x, x.mean((0, 1)))
    (lean,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(lean, plain)


def test_a_second_backward_pass_is_an_error():
    x = torch.randn(IMAGE).requires_grad_()
    with LeanMode():
        y = F.relu(x * 1)
    torch.autograd.grad(y.sum(), x)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), x)


def test_a_weight_that_changes_before_the_backward_pass_is_an_error():
    x, w = torch.randn(3, 5).requires_grad_(), torch.nn.Parameter(torch.randn(5, 5))
    with LeanMode():
        y = F.linear(x, w)
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), x)


def test_an_activation_that_changes_in_place_is_an_error_where_autograd_says_so():
    x = torch.randn(IMAGE).requires_grad_()
    with LeanMode():
        y = torch.sigmoid(x)
        F.relu(y, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), x)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("n", [5, 511, 512, 513, 40_000])
@pytest.mark.parametrize(
    "function",
    [F.relu, F.relu6, lambda x: F.hardtanh(x, -1.1, 0.3), F.leaky_relu, lambda x: F.threshold(x, 0.7, -1.1)],
)
def test_gates_bit_for_bit(function, n, dtype):
    special = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 6.0, 1e-45])
    x = torch.cat([special, 4 * torch.randn(n)])[:n].to(dtype)
    output, grad, _ = evaluate(function, x, lean=True)
    wanted, wanted_grad, _ = evaluate(function, x, lean=False)
    for got, reference in ((output, wanted), (grad, wanted_grad)):
        numbers = ~x.isnan()  # whether NaN passes the gradient depends on the place in a vector in PyTorch itself
        assert torch.equal(got[numbers], reference[numbers])
        assert torch.equal(got[numbers].signbit(), reference[numbers].signbit())
    assert torch.equal(output.isnan(), x.isnan())


def test_a_shared_gradient_is_not_written_to():
    # A residual connection hands one gradient tensor to both branches; working in place on it would corrupt the other.
    x = torch.randn(IMAGE, dtype=torch.float64)
    network = torch.nn.BatchNorm2d(4).double().eval()
    network.running_var.fill_(5.0)

    def residual(h):
        return F.relu(h) + network(h) + F.leaky_relu(h, 0.3)

    _, grad, mode = evaluate(residual, x, lean=True)
    assert sum(mode.swapped.values()) == 3
    torch.testing.assert_close(grad, evaluate(residual, x, lean=False)[1], rtol=1e-14, atol=1e-14)


def test_a_gradient_that_a_hook_keeps_is_not_written_to():
    kept = []
    x = torch.randn(IMAGE).requires_grad_()
    with LeanMode():
        y = F.relu(x * 1)
    y.register_hook(kept.append)
    torch.autograd.grad((y * 3).sum(), x)  # a dense gradient, which could be written to
    assert torch.equal(kept[0], torch.full(IMAGE, 3.0))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lean_convolution", lambda x: (x, torch.randn(3, 4, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)),
        ("lean_linear", lambda x: (x, torch.randn(3, 8), torch.randn(3))),
        ("lean_batch_norm", lambda x: (x, None, None, torch.zeros(4), torch.ones(4), 1e-5)),
        ("lean_mul", lambda x: (x, torch.randn(8))),
        ("lean_gate", lambda x: (x, "relu", 0.0, 0.0, 0.0)),
        ("lean_gate_", lambda x: (x.clone(), "hardtanh", -1.0, 1.0, 0.0)),
        ("lean_max_pool", lambda x: (x, [2, 2], [2, 2], [0, 0], [1, 1], False)),
        ("lean_avg_pool", lambda x: (x, [2, 2], [2, 2], [0, 0], False, True, None)),
        ("lean_adaptive_avg_pool", lambda x: (x, [2, 2])),
        ("lean_pad", lambda x: (x, [1, 1, 1, 1], "reflect")),
    ],
)
def test_opcheck(name, arguments):
    operator = getattr(torch.ops.igfast, name).default
    torch.library.opcheck(operator, arguments(torch.randn(IMAGE)), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("lean_gate", ("elu", 0.0, 0.0, 0.0), ValueError, "must be relu, hardtanh, leaky_relu or threshold, got elu"),
        ("lean_max_pool", ([17, 17], [1, 1], [0, 0], [1, 1], False), ValueError, "must not exceed the input"),
        ("lean_max_pool", ([3], [1], [0], [1], False), ValueError, "with 2 or 3 sizes"),
        ("lean_avg_pool", ([3], [1], [0], False, True, None), ValueError, "must have 2 or 3 sizes, got"),
        ("lean_adaptive_avg_pool", ([3],), ValueError, "with 2 or 3 sizes"),
        ("lean_pad", ([1, 1], "circular"), ValueError, "must be reflect or replicate"),
    ],
)
@pytest.mark.parametrize("functions", [torch.ops.igfast, _C])
def test_bad_arguments(functions, name, arguments, error, text):
    with pytest.raises(error, match=text):
        getattr(functions, name)(torch.randn(IMAGE), *arguments)


def test_functions_of_the_module_go_through_the_dispatcher():
    x, weight = torch.randn(IMAGE), torch.randn(3, 8)

    class Watch(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(func)
            return func(*args, **(kwargs or {}))

    def seen_of(functions):
        with Watch() as watch:
            y = functions.lean_gate(x, "relu", 0.0, 0.0, 0.0)
            assert functions.lean_gate_(y, "hardtanh", -1.0, 1.0, 0.0) is y
            functions.lean_linear(y, weight, None)
        return watch.seen

    assert len(seen_of(_C)) >= 3
    assert seen_of(_C) == seen_of(torch.ops.igfast)


def test_windows_of_numpy_integers_are_lean():
    two, one = (np.int64(2), np.int64(2)), (np.int64(1), np.int64(1))
    weight = torch.randn(3, 4, 3, 3, dtype=torch.float64)
    calls = [
        lambda x: F.max_pool2d(x, two, two),
        lambda x: F.max_pool2d(x, np.int64(2), np.int64(1)),
        lambda x: F.conv2d(x, weight, stride=np.int64(2), padding=np.int64(1)),
        lambda x: F.max_pool2d(x, (2, 2), (2, 2)),
        lambda x: F.conv2d(x, weight, stride=two, padding=one),
        lambda x: F.pad(x, (*one, *one), mode="reflect"),
    ]
    x = torch.randn(IMAGE, dtype=torch.float64)
    for call in calls:
        output, _, mode = evaluate(call, x, lean=True)
        assert sum(mode.swapped.values()) == 1
        assert torch.equal(output, evaluate(call, x, lean=False)[0])


@pytest.mark.parametrize("window", [2.0, (2.0, 2.0), [2.0, 2.0]])
def test_windows_of_floats_are_refused_as_by_pytorch(window):
    x = torch.randn(IMAGE, dtype=torch.float64)
    evaluate(lambda x: F.max_pool2d(x, (2, 2)), x, lean=True)  # equal numbers, which must not stand for these
    evaluate(lambda x: F.max_pool2d(x, 2), x, lean=True)
    for lean in (True, False):
        with pytest.raises(TypeError):
            evaluate(lambda x: F.max_pool2d(x, window), x, lean=lean)
