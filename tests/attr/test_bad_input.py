"""Every bad input: a typed error that says what was wrong, and nothing of the caller's changed."""

import copy
import warnings

import pytest
import torch
from torch import nn

import igfast
from tests import models

X = torch.randn(2, 3, dtype=torch.float64)


def attribute(forward=None, inputs=X, target=0, **arguments):
    forward = models.mlp() if forward is None else forward
    return igfast.IntegratedGradients(forward).attribute(inputs, target=target, **arguments)


def values(tensor):
    """What a tensor holds, as one that can be compared."""
    return torch.zeros(tensor.shape) if tensor.is_meta else tensor.to_dense()


def check(error, text, also, **arguments):
    """The call fails with `error`, which `text` matches and which is one of `also`; model and inputs are as before."""
    model = arguments.setdefault("forward", models.mlp())
    before = copy.deepcopy(model.state_dict()) if isinstance(model, torch.nn.Module) else {}
    inputs = arguments.get("inputs", X)
    tensors = [t for t in (inputs if isinstance(inputs, tuple) else (inputs,)) if isinstance(t, torch.Tensor)]
    copies = [values(t).clone() for t in tensors]
    rng, grad_mode = torch.get_rng_state(), torch.is_grad_enabled()
    with pytest.raises(error, match=text) as raised:
        attribute(**arguments)
    assert isinstance(raised.value, igfast.IgfastError)
    assert isinstance(raised.value, also)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.is_grad_enabled() == grad_mode
    for t, copied in zip(tensors, copies, strict=True):
        assert torch.equal(values(t), copied)
        assert not t.requires_grad
    if isinstance(model, torch.nn.Module):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert not model.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("n_steps", "method", "error", "text"),
    [
        (0, "gausslegendre", igfast.ArgumentError, "n_steps must be at least 1 for method 'gausslegendre'; got 0"),
        (-1, "riemann_left", igfast.ArgumentError, "n_steps must be at least 1 for method 'riemann_left'; got -1"),
        (1, "trapezoid", igfast.ArgumentError, "n_steps must be at least 2 for method 'trapezoid'; got 1"),
        (1, "riemann_trapezoid", igfast.ArgumentError, "n_steps must be at least 2"),
        (10.0, "gausslegendre", igfast.ArgumentTypeError, r"n_steps must be an integer; got 10.0 \(float\)"),
        ("5", "gausslegendre", igfast.ArgumentTypeError, r"n_steps must be an integer; got '5' \(str\)"),
        (5, "nonsense", igfast.ArgumentError, "method must be one of riemann_left, .*trapezoid; got 'nonsense'"),
        (5, None, igfast.ArgumentError, "method must be one of .*; got None"),
    ],
)
def test_steps_and_method(n_steps, method, error, text):
    check(error, text, AssertionError, n_steps=n_steps, method=method)


@pytest.mark.parametrize(
    ("baselines", "error", "text", "also"),
    [
        (
            torch.zeros(2, 4),
            igfast.BaselineError,
            r"shape of inputs\[0\], \(2, 3\), or be one row that .* \(1, 3\).*\(2, 4\)",
            AssertionError,
        ),
        (torch.zeros(3, 3), igfast.BaselineError, r"got a float32 tensor of shape \(3, 3\)", AssertionError),
        (torch.zeros(3), igfast.BaselineError, r"got a float32 tensor of shape \(3,\)", AssertionError),
        (torch.tensor(0.0), igfast.BaselineError, r"or a number; got a float32 tensor of shape \(\)", IndexError),
        ("black", igfast.ArgumentTypeError, r"baselines\[0\] must be a tensor or a number; got a str", AssertionError),
        ((0, 0), igfast.BaselineError, "one for each input, in a tuple of length 1; got 2", AssertionError),
        (torch.zeros(2, 3, dtype=torch.complex64), igfast.BaselineError, "is complex, but inputs", ValueError),
        (torch.zeros(2, 3, device="meta"), igfast.BaselineError, "on meta, but inputs.* on cpu", ValueError),
    ],
)
def test_baselines(baselines, error, text, also):
    check(error, text, also, baselines=baselines)


def test_one_baseline_for_two_inputs():
    for baselines in (0, (0,), torch.zeros(2, 3)):
        check(
            igfast.BaselineError,
            "one for each input, in a tuple of length 2; got 1",
            AssertionError,
            inputs=(X, torch.zeros(2, 2, 4)),
            forward=models.TwoInputs(),
            baselines=baselines,
        )


@pytest.mark.parametrize(
    ("inputs", "error", "text", "also"),
    [
        (X > 0, igfast.InputTypeError, r"inputs\[0\] is a bool tensor of shape \(2, 3\).*\.float\(\)", RuntimeError),
        ("text", igfast.InputTypeError, r"inputs\[0\] is a str", AssertionError),
        ([X], igfast.InputTypeError, "must be a tensor or a tuple of tensors; .* is a list", AssertionError),
        (X.numpy(), igfast.InputTypeError, "is a ndarray", AssertionError),
        (None, igfast.InputTypeError, "is a NoneType", AssertionError),
        ((), igfast.InputTypeError, "got an empty tuple", TypeError),
        ((X, None), igfast.InputTypeError, r"inputs\[1\] is a NoneType", AssertionError),
        (torch.tensor(1.0), igfast.InputError, r"got a float32 tensor of shape \(\).*\.unsqueeze\(0\)", RuntimeError),
        (X.to_sparse(), igfast.InputError, r"must be a dense tensor; got layout torch.sparse_coo", RuntimeError),
        ((X, X.to("meta")), igfast.InputError, r"inputs\[0\] is on cpu, inputs\[1\] is on meta", RuntimeError),
    ],
)
def test_inputs(inputs, error, text, also):
    check(error, text, also, inputs=inputs)


def test_nested_tensor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that nested tensors are a prototype
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(igfast.InputError, match="must be a dense tensor"):
        attribute(inputs=nested)


def test_integers_into_an_embedding():
    forward = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
    check(
        igfast.InputTypeError,
        r"inputs\[0\]: the input holds integers, but points between .* are torch.float32.*LayerIntegratedGradients",
        (RuntimeError, TypeError),
        forward=forward,
        inputs=torch.tensor([[1, 2, 3]]),
    )


class IgnoresSecond(models.TwoInputs):
    def forward(self, a, b):
        return self.left(a)


def test_input_that_the_output_does_not_depend_on():
    check(
        igfast.InputError,
        r"inputs\[1\] is not used by forward_func.*additional_forward_args",
        RuntimeError,
        forward=IgnoresSecond(),
        inputs=(X, torch.zeros(2, 2, 4, dtype=torch.float64)),
    )


@pytest.mark.parametrize(
    ("target", "error", "text", "also"),
    [
        (
            None,
            igfast.TargetError,
            r"target is None, but forward_func returned a float64 tensor of shape",
            AssertionError,
        ),
        (
            4,
            igfast.TargetError,
            "target is 4, out of range for dimension 1 of the output, which has size 4",
            IndexError,
        ),
        (-5, igfast.TargetError, "target is -5, out of range", IndexError),
        ((0, 1), igfast.TargetError, "target has 2 indices, but .* has 1 dimensions after", AssertionError),
        ([0, 9], igfast.TargetError, r"target\[1\] is 9, out of range", RuntimeError),
        (torch.tensor([9, 0]), igfast.TargetError, r"target\[0\] is 9, out of range", RuntimeError),
        ([(0, 0), (1, 1)], igfast.TargetError, r"target\[0\] has 2 indices", IndexError),
        ([0, 1, 2], igfast.TargetError, "target must have one entry per example, 2; got 3", AssertionError),
        ([0], igfast.TargetError, "target must have one entry per example, 2; got 1", AssertionError),
        (torch.tensor([0, 1, 2]), igfast.TargetError, "one entry per example, 2; got 3", AssertionError),
        (torch.tensor([[0], [1]]), igfast.TargetError, r"must have shape \(batch,\) or one element", AssertionError),
        (torch.tensor([0.0, 1.0]), igfast.TargetTypeError, "must be an integer tensor; got a float32", RuntimeError),
        (1.0, igfast.TargetTypeError, "target must be an integer; got 1.0", AssertionError),
        ("cat", igfast.TargetTypeError, "target must be an integer; got a str", AssertionError),
        (True, igfast.TargetTypeError, "target must be an integer; got True", AssertionError),
        ([True, False], igfast.TargetTypeError, "must be an integer; got True", AssertionError),
        (slice(0, 1), igfast.TargetTypeError, "target must be an integer; got a slice", AssertionError),
        ([0, (1,)], igfast.OutputError, "never", None),
        ([0, (1, 1)], igfast.TargetTypeError, "of one length; got several lengths", TypeError),
        ([0, "cat"], igfast.TargetTypeError, r"target\[1\] must be an integer; got a str", TypeError),
        ((slice(0, 2),), igfast.TargetError, "target leaves 2 numbers per example", AssertionError),
    ],
)
def test_targets(target, error, text, also):
    if also is None:  # an int and a tuple of one int say the same; Captum raises TypeError
        assert attribute(target=target).shape == X.shape
        return
    check(error, text, also, target=target)


@pytest.mark.parametrize(
    ("size", "error", "text"),
    [
        (0, igfast.ArgumentError, "internal_batch_size must be at least 1; got 0"),
        (-3, igfast.ArgumentError, "internal_batch_size must be at least 1; got -3"),
        (0.5, igfast.ArgumentTypeError, "internal_batch_size must be a positive integer or None; got 0.5"),
        ("many", igfast.ArgumentTypeError, "must be a positive integer or None; got a str"),
    ],
)
def test_internal_batch_size(size, error, text):
    check(error, text, ValueError if error is igfast.ArgumentError else TypeError, internal_batch_size=size)


@pytest.mark.parametrize("shape", [(3, 1), (5, 3)])
def test_additional_arguments_that_fit_neither_1_nor_the_batch(shape):
    check(
        igfast.InputError,
        r"additional_forward_args\[1\] is a float32 tensor .* not one entry for each of the 2 examples, and",
        RuntimeError,
        forward=lambda x, flag, arg: x + arg,
        additional_forward_args=(True, torch.zeros(shape)),
    )


@pytest.mark.parametrize(
    ("forward", "error", "text", "also"),
    [
        (lambda x: (x, x), igfast.OutputTypeError, "must return a tensor; got a tuple.*lambda", AttributeError),
        (lambda x: {"logits": x}, igfast.OutputTypeError, "got a dict", (AttributeError, KeyError)),
        (lambda x: None, igfast.OutputTypeError, "got a NoneType", TypeError),
        (lambda x: 1.5, igfast.OutputTypeError, "got 1.5", TypeError),
        (lambda x: x.detach(), igfast.OutputError, "without a graph to its inputs.*detach", RuntimeError),
        (torch.no_grad()(lambda x: x * 2), igfast.OutputError, "without a graph", RuntimeError),
        (lambda x: x.argmax(1, keepdim=True), igfast.OutputError, "int64 tensor .* without a graph", RuntimeError),
        (lambda x: x.sum(), igfast.OutputError, r"one entry per example; it returned .*shape \(\)", IndexError),
        (lambda x: x * 1j, igfast.OutputError, "must return real numbers", RuntimeError),
        (3, igfast.ArgumentTypeError, "forward_func must be callable; got 3", TypeError),
    ],
)
def test_outputs(forward, error, text, also):
    check(error, text, also, forward=forward)


def test_output_object_of_transformers():
    from transformers.modeling_outputs import SequenceClassifierOutput

    check(
        igfast.OutputTypeError,
        "got a SequenceClassifierOutput.*\\.logits",
        TypeError,
        forward=lambda x: SequenceClassifierOutput(logits=x),
    )


def test_parameters_of_inference_mode():
    with torch.inference_mode():
        model = models.mlp()
    with pytest.raises(igfast.OutputError, match=r"parameters were created under torch\.inference_mode"):
        attribute(forward=model)


def test_errors_of_the_model_pass_unchanged():
    class BrokenError(RuntimeError):
        pass

    def forward(x):
        raise BrokenError("mine")

    with pytest.raises(BrokenError, match=r"^mine$"):
        attribute(forward=forward)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_input_warns_once_and_gives_captums_numbers(value):
    import captum.attr

    x = X.clone()
    x[0, 1] = value
    with pytest.warns(igfast.IgfastWarning, match=r"inputs\[0\] holds NaN or infinite values") as caught:
        got = attribute(inputs=x)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    wanted = captum.attr.IntegratedGradients(models.mlp()).attribute(x, target=0)
    assert torch.equal(got.isfinite()[1], wanted.isfinite()[1])
    assert torch.equal(got[0].isfinite(), wanted[0].isfinite())
    torch.testing.assert_close(got[1], wanted[1])


def test_not_finite_baseline_warns():
    with pytest.warns(igfast.IgfastWarning, match=r"baselines\[0\] holds NaN or infinite values"):
        attribute(baselines=float("nan"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("error::igfast.IgfastWarning")
def test_the_largest_finite_inputs_do_not_warn(dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([[largest, -largest]], dtype=dtype)
    igfast.IntegratedGradients(lambda x: x.sum(1)).attribute(x)


def test_not_finite_gradient_warns_with_example_and_step():
    def forward(x):
        return torch.sqrt(x - 0.5)  # NaN below one half of the way

    x = torch.tensor([[2.0], [1.0]], dtype=torch.float64)
    with pytest.warns(igfast.IgfastWarning, match=r"gradient of example 1 at step 0 of 4 \(alpha 0\.125\).*; 2 path"):
        igfast.IntegratedGradients(forward).attribute(
            x, baselines=torch.tensor([[0.9], [0.0]]).double(), n_steps=4, method="riemann_middle"
        )


@pytest.mark.parametrize(
    ("attributions", "error", "text"),
    [
        (lambda a: a[:2], igfast.ArgumentError, r"attributions\[0\] must have the examples of end_point"),
        (lambda a: [a], igfast.ArgumentTypeError, "attributions must be one tensor for each input, 1; got a list"),
        (lambda a: (a, a), igfast.ArgumentTypeError, "attributions must be one tensor for each input, 1; got a float"),
    ],
)
def test_attributions_of_a_delta(attributions, error, text):
    x, explainer = torch.randn(3, 3, dtype=torch.float64), igfast.IntegratedGradients(nn.Linear(3, 2).double())
    found = explainer.attribute(x, target=1)
    with pytest.raises(error, match=text):
        explainer.compute_convergence_delta(attributions(found), 0, x, target=1)


def test_a_single_example_in_training_mode():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    with pytest.raises(igfast.InputError, match=r"no single example. Call eval\(\) on the model"):
        igfast.IntegratedGradients(model).attribute(torch.randn(1, 3), target=0)


@pytest.mark.parametrize("size", [1, 3])
def test_a_single_example_of_several_in_training_mode_is_not_tried_in_vain(size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().train()
    explainer, x = igfast.IntegratedGradients(model), torch.randn(4, 3).double()
    with pytest.warns(igfast.IgfastWarning, match="each step went through the model as a whole"):
        got = explainer.attribute(x, target=0, internal_batch_size=size)
    torch.testing.assert_close(got, explainer.attribute(x, target=0, internal_batch_size=4))
