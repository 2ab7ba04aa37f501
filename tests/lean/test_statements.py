"""Lean execution where a model does more than call functions: statements in place, hooks, edits, modes, checkpoints."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import igfast
from igfast.ops._load import kernels_loaded

assert kernels_loaded()
from igfast.lean.mode import LeanMode  # noqa: E402
from tests.lean.calls import IMAGE, IN_PLACE  # noqa: E402
from tests.lean.test_calls import evaluate  # noqa: E402

DOUBLE = torch.float64


@pytest.mark.parametrize("name", IN_PLACE)
def test_the_argument_of_an_activation_in_place_is_changed(name):
    def function(x):
        h = x * 1
        IN_PLACE[name](h)
        return h * 2

    torch.manual_seed(0)
    x = torch.randn(IMAGE, dtype=DOUBLE)
    output, grad, mode = evaluate(function, x, lean=True)
    wanted, wanted_grad, _ = evaluate(function, x, lean=False)
    assert sum(mode.swapped.values()) == 1
    assert torch.equal(output, wanted)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("options", [{"alpha": 2.0}, {"beta": 0.3}, {"beta": 0.3, "alpha": 2.0}])
def test_a_product_with_factors_is_left_to_pytorch(options):
    matrix, bias = nn.Parameter(torch.randn(7, 5, dtype=DOUBLE)), nn.Parameter(torch.randn(5, dtype=DOUBLE))
    x = torch.randn(6, 7, dtype=DOUBLE).requires_grad_()
    with LeanMode() as mode:
        got = torch.addmm(bias, x * 1, matrix, **options)
    assert not mode.swapped
    assert torch.equal(got, torch.addmm(bias, x * 1, matrix, **options))


def test_a_result_that_the_caller_keeps_a_place_for():
    x, matrix, place = torch.randn(6, 7), nn.Parameter(torch.randn(7, 5)), torch.empty(6, 5)
    with LeanMode(), torch.no_grad():
        torch.matmul(x, matrix, out=place)
        assert torch.equal(torch.mm(x, matrix), place)
    assert torch.equal(x @ matrix, place)


class Gated(nn.Module):
    """The feed-forward part of a LLaMA, with a hook that a user put on the activation."""

    def __init__(self, hook=None):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up, self.down = (nn.Linear(6, 6).double() for _ in range(3))
        self.hook = hook

    def forward(self, x):
        activated = F.silu(self.gate(x))
        if self.hook is not None:
            self.hook(activated)
        return self.down(activated * self.up(x))


X = torch.randn(3, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def halves_the_gradient(activated):
    if activated.requires_grad:
        activated.register_hook(lambda grad: grad / 2)


@pytest.mark.parametrize("hook", [None, halves_the_gradient])
def test_hooks_on_a_gated_activation_run(hook):
    model = Gated(hook)
    got = igfast.IntegratedGradients(model, lean=True).attribute(X, target=1, n_steps=5)
    wanted = igfast.IntegratedGradients(model, lean=False).attribute(X, target=1, n_steps=5)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def zeroes_a_unit(activated):
    with torch.no_grad():
        activated[:, 2] = 0


def test_a_gated_activation_that_was_edited_without_a_graph():
    model = Gated(zeroes_a_unit)
    got = igfast.IntegratedGradients(model).attribute(X, target=1, n_steps=5)
    wanted = igfast.IntegratedGradients(model, lean=False).attribute(X, target=1, n_steps=5)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "relu_", "leaky_relu_", "hardtanh", "hardtanh_", "threshold_"])
def test_an_activation_that_was_edited_without_a_graph(name):
    """An error where PyTorch's gradient would read it, and the same numbers where it reads another tensor."""
    first, second = nn.Linear(6, 6).double(), nn.Linear(6, 2).double()

    def forward(x):
        h = first(x)
        h = IN_PLACE[name](h) if name.endswith("_") else getattr(F, name)(h)
        zeroes_a_unit(h)
        return second(h)

    def attributed(lean):
        try:
            return igfast.IntegratedGradients(forward, lean=lean).attribute(X, target=1, n_steps=5)
        except RuntimeError as error:
            return str(error)

    got, wanted = attributed("auto"), attributed(False)
    if isinstance(wanted, str):
        assert "modified by an inplace operation" in wanted
        assert got == wanted
    else:
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)
    assert isinstance(wanted, str) is (name in ("relu", "relu_", "leaky_relu_"))


def test_an_activation_that_autograd_sees_written_to():
    def forward(x):
        h = F.leaky_relu(x * 2, 0.1)  # PyTorch's gradient reads its argument, so that its result may change
        h += 1
        return h.square()

    got = igfast.IntegratedGradients(forward, lean=True).attribute(X, target=1, n_steps=5)
    wanted = igfast.IntegratedGradients(forward, lean=False).attribute(X, target=1, n_steps=5)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


class Smooth(TorchFunctionMode):
    """Has softplus in the place of ReLU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return F.softplus(args[0]) if func is F.relu else func(*args, **(kwargs or {}))


def test_a_function_mode_of_the_callers():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    with Smooth():
        got, report = igfast.IntegratedGradients(model).attribute(X, target=1, n_steps=5, return_report=True)
    smooth = nn.Sequential(model[0], nn.Softplus(), model[2])
    wanted = igfast.IntegratedGradients(smooth).attribute(X, target=1, n_steps=5)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)
    assert report.lean.off_because == "a TorchFunctionMode is active"


def test_a_default_device_is_no_such_mode():
    with torch.device("cpu"):
        _, report = igfast.IntegratedGradients(nn.Linear(6, 2).double()).attribute(X, target=1, return_report=True)
    assert not report.lean.off_because


def test_a_mean_that_is_computed_has_its_gradient():
    def centred(x):
        h = x.view(-1, 2, 3)
        return F.batch_norm(h, h.mean((0, 2)), torch.ones(2, dtype=DOUBLE)).flatten(1)

    with pytest.raises(RuntimeError, match="not differentiable with respect to argument 'running_mean'"):
        igfast.IntegratedGradients(centred).attribute(X, target=1, internal_batch_size=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_batch_norm_in_half_precision_rounds_once(dtype):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(64).eval()
    norm.running_var.uniform_(0.1, 3)
    nn.init.uniform_(norm.weight, 0.5, 2)
    norm = norm.to(dtype)
    x = torch.randn(2, 64, 4, 4, dtype=dtype)
    _, grad, mode = evaluate(norm, x, lean=True)
    _, plain, _ = evaluate(norm, x, lean=False)
    assert mode.swapped["batch_norm"] == 1
    torch.manual_seed(1)
    seed = torch.randn_like(x).double()
    scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    exact = seed * scale.view(1, -1, 1, 1)
    assert (grad.double() - exact).norm() <= 1.01 * (plain.double() - exact).norm()


def activations():
    transformers = pytest.importorskip("transformers")
    return transformers.activations.ACT2FN


@pytest.mark.parametrize("name", ["relu2", "gelu_new", "quick_gelu"])
def test_activations_of_transformers_inside_checkpoints(name):
    class Checkpointed(Gated):
        def __init__(self):
            super().__init__()
            self.act = activations()[name]

        def forward(self, x):
            h = checkpoint(lambda a, b: self.act(a) * b, self.gate(x), self.up(x), use_reentrant=False)
            return self.down(h)

    model = Checkpointed()
    got = igfast.IntegratedGradients(model, lean=True).attribute(X, target=1, n_steps=5)
    wanted = igfast.IntegratedGradients(model, lean=False).attribute(X, target=1, n_steps=5)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def test_activations_inside_a_transform_of_torch_func():
    class Mapped(Gated):
        def __init__(self):
            super().__init__()
            self.act = activations()["gelu_new"]

        def forward(self, x):
            return torch.func.vmap(lambda row: self.act(row) + super(Mapped, self).forward(row[None])[0])(x)

    model = Mapped()
    got = igfast.IntegratedGradients(model, lean=True).attribute(X, target=1, n_steps=5)
    wanted = igfast.IntegratedGradients(model, lean=False).attribute(X, target=1, n_steps=5)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
