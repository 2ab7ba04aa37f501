"""When lean execution is on, what turns it off, and that a fallback leaves no trace."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import igfast
from igfast.errors import IgfastWarning
from igfast.ops._load import kernels_loaded
from tests import models
from tests.oracle import naive_integrated_gradients, relative_difference

assert kernels_loaded()
from igfast.lean.handlers import refuses  # noqa: E402
from igfast.lean.mode import LeanMode  # noqa: E402

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def plain(function, x=X):
    return igfast.IntegratedGradients(function, lean=False).attribute(x, target=1, n_steps=5)


def without_warnings(function, x=X, lean="auto"):
    with warnings.catch_warnings():
        warnings.simplefilter("error", IgfastWarning)
        return igfast.IntegratedGradients(function, lean=lean).attribute(x, target=1, n_steps=5)


def reasons(function, x=X):
    """What ran plainly although the table knows it, and why."""
    mode = LeanMode()
    with mode:
        function(x.detach().requires_grad_() * 1)
    return set(mode.plain)


def test_lean_is_the_default():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            h = F.relu(x * 2)
            if h.grad_fn is not None:  # not in the comparison of layouts, which is forward only
                seen.append(h.grad_fn.name())
            return h.flatten(1)

    for lean in ("auto", True, False):
        seen.clear()
        igfast.IntegratedGradients(Spy(), lean=lean).attribute(X, target=1, n_steps=2)
        assert seen
        assert all(("ReluBackward" in name) is (lean is False) for name in seen)


@pytest.mark.parametrize("lean", ["on", None, 2])
def test_other_values_are_refused(lean):
    with pytest.raises(igfast.ArgumentError, match=r'lean must be "auto", True or False; got'):
        igfast.IntegratedGradients(models.mlp(), lean=lean)


def test_the_models_own_error_passes_unchanged():
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError("mine")

    for lean in ("auto", True):
        with pytest.raises(KeyError, match="mine"):
            igfast.IntegratedGradients(Fails(), lean=lean).attribute(X, target=1)


def test_random_draws_of_a_chunk_that_fell_back_are_drawn_once():
    class Drops(nn.Module):
        def forward(self, x):
            h = F.dropout(x, 0.5, training=True)
            (grad,) = torch.autograd.grad((h**3).sum(), x, create_graph=True)
            return grad.flatten(1)

    options = {"target": 1, "n_steps": 5, "internal_batch_size": 2}  # a step at a time, so that none is compared
    torch.manual_seed(5)
    wanted = igfast.IntegratedGradients(Drops(), lean=False).attribute(X, **options)
    torch.manual_seed(5)
    with pytest.warns(IgfastWarning, match="differentiates inside its forward pass"):
        got = igfast.IntegratedGradients(Drops()).attribute(X, **options)
    assert relative_difference(got, wanted) <= 1e-12


def own_backward(x):
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        (leaf**2).sum().backward()
    return (x * leaf.grad).flatten(1)


def test_backward_inside_the_model_is_seen_whichever_way_it_is_called():
    def module_backward(x):
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward((leaf**2).sum())
        return (x * leaf.grad).flatten(1)

    for function in (own_backward, module_backward):
        wanted = plain(function)
        with pytest.warns(IgfastWarning, match="differentiates inside its forward pass"):
            got = igfast.IntegratedGradients(function).attribute(X, target=1, n_steps=5)
        assert relative_difference(got, wanted) <= 1e-12


def test_images_do_not_hide_that_lean_execution_failed():
    # Path points in the caller's layout are another attempt where channels-last ones fail, but not for this.
    images = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(igfast.LeanError):
        igfast.IntegratedGradients(own_backward, lean=True).attribute(images, target=1, n_steps=5)


def test_custom_backward_that_asks_for_a_weights_gradient():
    # Meets no call in the mode: the node itself refuses.
    weight = nn.Parameter(torch.randn(3, 8, dtype=torch.float64))

    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y, through):
            ctx.through = through
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            engine = torch.autograd.Variable._execution_engine
            with torch.enable_grad():
                total, one = ctx.through.sum(), torch.ones((), dtype=grad.dtype)
                engine.run_backward((total,), (one,), True, False, (weight,), False, True)
            return grad, None

    def function(x):
        through = F.linear(x, weight)
        return Inner.apply(through, through).flatten(1)

    wanted = plain(function)
    with pytest.warns(IgfastWarning, match="the gradient of a weight"):
        got = igfast.IntegratedGradients(function).attribute(X, target=1, n_steps=5)
    assert relative_difference(got, wanted) <= 1e-12


def test_checkpoints_inside_the_model():
    network = models.convnet()

    def checkpointed(x):
        return checkpoint(network, x, use_reentrant=False)

    assert relative_difference(without_warnings(checkpointed, lean=True), plain(network)) <= 1e-12
    assert ("conv2d", "hooks on saved tensors") in reasons(checkpointed)


def test_hooks_on_saved_tensors_see_what_autograd_saves():
    seen = []
    network = models.convnet()

    def hooked(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
            return network(x)

    wanted = plain(hooked)
    plainly = list(seen)
    seen.clear()
    assert torch.equal(without_warnings(hooked, lean=True), wanted)
    assert set(seen) == set(plainly)


WEIGHT = torch.randn(4, 3)
COMPUTED = nn.Parameter(WEIGHT) * 2
REFUSALS = {
    "an integer weight": (X.float(), [WEIGHT.int()], "a weight of another type"),
    "a weight of float64": (X.float(), [WEIGHT.double()], "a weight of another type"),
    "a sparse weight": (X.float(), [WEIGHT.to_sparse()], "a weight of another type"),
    "a weight that is none": (X.float(), [3.0], "a weight of another type"),
    "a computed weight": (X.float(), [WEIGHT, COMPUTED], "a weight that is computed in the forward pass"),
    "complex numbers": (X.to(torch.complex64), [], "torch.complex64 torch.strided"),
    "a sparse tensor": (WEIGHT.to_sparse(), [], "torch.float32 torch.sparse_coo"),
    "a tensor on meta": (WEIGHT.to("meta"), [], "tensors on meta"),
    "a parameter as a weight": (X, [nn.Parameter(WEIGHT.double())], None),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_no_call_can_be_lean_with(case):
    x, weights, why = REFUSALS[case]
    assert refuses(x, *weights) == ""  # nothing to save without a gradient
    x = x.detach().requires_grad_()
    with torch.no_grad():
        assert refuses(x, *weights) == ""
    assert refuses(x, *weights) == why
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = "torch.autocast" if x.is_cpu and x.layout == torch.strided and not x.is_complex() else why
        assert refuses(x, *weights) == expected


def test_autocast():
    network = models.convnet().float()
    x = X.float()

    def autocast(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network(x).float()

    assert relative_difference(without_warnings(autocast, x, lean=True), plain(autocast, x)) <= 1e-2
    assert ("conv2d", "torch.autocast") in reasons(autocast, x)


def test_a_compiled_model_runs_plainly():
    network = models.mlp()
    compiled = torch.compile(network, backend="eager")
    x = torch.randn(2, 3, dtype=torch.float64)
    assert relative_difference(without_warnings(compiled, x), plain(network, x)) <= 1e-12
    with pytest.raises(igfast.LeanError, match=r"is compiled \(torch.compile\)"):
        igfast.IntegratedGradients(compiled, lean=True).attribute(x, target=1)
    inner = nn.Sequential(compiled, nn.ReLU())
    with pytest.raises(igfast.LeanError, match=r"is compiled \(torch.compile\)"):
        igfast.IntegratedGradients(inner, lean=True).attribute(x, target=1)


def test_a_compiled_part_behind_a_function():
    compiled = torch.compile(models.mlp(), backend="eager")
    x = torch.randn(2, 3, dtype=torch.float64)
    wanted = plain(models.mlp(), x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = igfast.IntegratedGradients(lambda x: compiled(x) * 1.0).attribute(x, target=1, n_steps=5)
    assert relative_difference(got, wanted) <= 1e-12


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_a_wide_window_and_asymmetric_padding_run_plainly():
    weight = torch.randn(2, 3, 2, 2, dtype=torch.float64)

    def network(x):
        x = F.max_pool2d(F.pad(x, (5, 5, 5, 5)), 17)
        return F.conv2d(x.repeat(1, 1, 4, 4), weight, padding="same").flatten(1)

    assert reasons(network) == {
        ("max_pool2d", "a window of more than 256 cells"),
        ("conv2d", "padding that is not symmetric"),
    }
    assert torch.equal(without_warnings(network, lean=True), plain(network))


def test_tensor_subclasses_run_plainly():
    class Mine(torch.Tensor):
        pass

    def network(x):
        return F.relu(x.as_subclass(Mine)).as_subclass(torch.Tensor).flatten(1)

    assert reasons(network) == {("relu", "a tensor subclass")}
    assert torch.equal(without_warnings(network), plain(network))


def test_the_model_is_left_as_it_was():
    network = models.convnet()
    before = {name: (p.requires_grad, p.grad, p._version) for name, p in network.named_parameters()}
    without_warnings(network, lean=True)
    assert {name: (p.requires_grad, p.grad, p._version) for name, p in network.named_parameters()} == before
    assert len(torch.overrides._get_current_function_mode_stack()) == 0


def test_a_replaced_gradient_function_runs_plainly():
    explainer = igfast.IntegratedGradients(models.convnet(), lean=True)
    explainer.gradient_func = lambda **_: None
    with pytest.raises(igfast.LeanError, match="gradient_func was replaced"):
        explainer.attribute(X, target=1)


def test_against_the_naive_loop():
    network = models.convnet()
    (wanted,) = naive_integrated_gradients(lambda x: network(x)[:, 1], (X,), (torch.zeros_like(X),), 5)
    assert relative_difference(without_warnings(network, lean=True), wanted) <= 1e-12
