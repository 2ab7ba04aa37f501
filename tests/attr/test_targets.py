"""Several targets in one call give what single calls give, from one forward pass for each path point."""

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

import igfast
from tests import models


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)).double()


def convolutions():
    torch.manual_seed(0)
    return (
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)),
        )
        .double()
        .eval()
    )


X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DATA = torch.randn(7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGES = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Counts(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.rows = body, 0

    def forward(self, x):
        self.rows += len(x)
        return self.body(x)


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize(
    "targets",
    [[1, 4, 0], (1, 4), [(1,), (2,)], torch.tensor([1, 4]), np.array([3, 2]), [[0, 1, 2], [2, 1, 0]],
     [torch.tensor([0, 1, 2]), torch.tensor([4, 4, 4])]],
)  # fmt: skip
def test_equals_single_calls(targets, lean):
    explainer = igfast.IntegratedGradients(convolutions(), lean=lean)
    options = {"n_steps": 9, "return_convergence_delta": True}
    found, report = explainer.attribute_targets(IMAGES, targets, 0.1, return_report=True, **options)
    assert len(found) == len(targets)
    for (one, delta), target in zip(found, targets, strict=True):
        single, single_delta = explainer.attribute(IMAGES, 0.1, target, **options)
        torch.testing.assert_close(one, single, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(delta, single_delta, rtol=1e-9, atol=1e-12)
    assert report.n_rows == 27


def test_one_forward_pass_for_all():
    def rows(call):
        model = Counts(net())
        call(igfast.IntegratedGradients(model))
        return model.rows

    single = rows(lambda explainer: explainer.attribute(X, target=1, n_steps=20))
    assert rows(lambda explainer: explainer.attribute_targets(X, [0, 1, 2, 3, 4], n_steps=20)) == single


def test_the_largest_classes():
    model = net()
    found, report = igfast.IntegratedGradients(model).attribute_targets(X, "top3", return_report=True)
    classes = model(X).topk(3, dim=1).indices
    assert report.targets == tuple(tuple(column) for column in classes.T.tolist())
    for rank, one in enumerate(found):
        single = igfast.IntegratedGradients(model).attribute(X, target=classes[:, rank])
        torch.testing.assert_close(one, single, rtol=1e-12, atol=1e-14)


def test_layers():
    model = convolutions()
    for layer in (model[0], [model[0], model[0]][:1]):
        explainer = igfast.LayerIntegratedGradients(model, layer)
        found = explainer.attribute_targets(IMAGES, [0, 3], n_steps=9, return_convergence_delta=True)
        for (one, delta), target in zip(found, [0, 3], strict=True):
            single, single_delta = explainer.attribute(IMAGES, target=target, n_steps=9, return_convergence_delta=True)
            one, single = (value[0] if isinstance(value, list) else value for value in (one, single))
            torch.testing.assert_close(one, single, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(delta, single_delta, rtol=1e-9, atol=1e-12)
    (top,) = igfast.LayerIntegratedGradients(model, model[4]).attribute_targets(IMAGES, "top1")
    single = igfast.LayerIntegratedGradients(model, model[4]).attribute(IMAGES, target=model(IMAGES).argmax(1))
    torch.testing.assert_close(top, single, rtol=1e-12, atol=1e-14)


def test_transformers():
    model, image = models.transformers_model("vit")
    explainer = igfast.IntegratedGradients(model.double())
    found = explainer.attribute_targets(image.double(), [0, 1], n_steps=3)
    for one, target in zip(found, [0, 1], strict=True):
        single = explainer.attribute(image.double(), target=target, n_steps=3)
        torch.testing.assert_close(one, single, rtol=1e-10, atol=1e-14)


def test_with_a_tolerance():
    model = net()
    explainer = igfast.IntegratedGradients(model)
    found, report = explainer.attribute_targets(
        X, [0, 3], tolerance=0.01, return_convergence_delta=True, return_report=True
    )
    for (one, delta), target in zip(found, [0, 3], strict=True):
        fine = explainer.attribute(X, target=target, n_steps=4096, method="riemann_middle")
        assert ((one - fine).norm(dim=1) <= 0.015 * fine.norm(dim=1)).all()
        assert delta.abs().max() < 1e-12
    assert all(report.convergence.converged)


@pytest.mark.parametrize(("several", "tolerance"), [(False, None), (True, None), (False, 0.01)])
def test_several_inputs_of_one_shape(several, tolerance):
    """Inputs and targets are told apart where their tensors are alike."""
    model = net()
    halves = X[:, :3], X[:, 3:]
    data = (DATA[:, :3], DATA[:, 3:]) if several else (0, 0)
    baselines = igfast.Baselines(data) if several else data
    explainer = igfast.IntegratedGradients(lambda a, b: model(torch.cat([a, b], dim=1)))
    options = {"n_steps": 20} if tolerance is None else {"tolerance": tolerance}
    found = explainer.attribute_targets(halves, [0, 2], baselines, **options)
    whole = igfast.IntegratedGradients(model)
    for parts, target in zip(found, [0, 2], strict=True):
        n_steps = 20 if tolerance is None else 500
        exact = whole.attribute(X, igfast.Baselines(DATA) if several else 0, target=target, n_steps=n_steps)
        error = (torch.cat(parts, dim=1) - exact).norm(dim=1)
        assert (error <= (1e-12 if tolerance is None else 0.015) * exact.norm(dim=1)).all()


def test_rows_that_belong_together_and_several_inputs():
    model = net()

    def bag(a, b):
        return model(torch.cat([a, b], dim=1)).max(dim=0).values.unsqueeze(0)

    explainer = igfast.IntegratedGradients(bag)
    found = explainer.attribute_targets((X[:, :2], X[:, 2:]), [0, 3], return_convergence_delta=True)
    for (one, delta), target in zip(found, [0, 3], strict=True):
        single, single_delta = explainer.attribute((X[:, :2], X[:, 2:]), target=target, return_convergence_delta=True)
        for part, other in zip(one, single, strict=True):
            torch.testing.assert_close(part, other, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(delta, single_delta, rtol=1e-9, atol=1e-12)


def test_recomputed_blocks():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 6), nn.Tanh())

        def forward(self, x):
            return x + self.body(x)

    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(6)), nn.Linear(6, 5)).double()
    explainer = igfast.IntegratedGradients(model)
    with pytest.MonkeyPatch.context() as patch:
        tried = []

        def fails_once(points, example):
            if not tried:
                tried.append(True)
                raise MemoryError("not enough memory")
            return original(points, example)

        from igfast.model.forward import ForwardFunction

        original = None
        gradient = ForwardFunction.gradient

        def patched(self, points, example):
            nonlocal original
            original = lambda p, e: gradient(self, p, e)  # noqa: E731
            return fails_once(points, example)

        patch.setattr(ForwardFunction, "gradient", patched)
        with pytest.warns(igfast.IgfastWarning, match="computed again in the backward pass"):
            found = explainer.attribute_targets(X[:1], [0, 3], n_steps=5, internal_batch_size=1)
    for one, target in zip(found, [0, 3], strict=True):
        single = igfast.IntegratedGradients(model).attribute(X[:1], target=target, n_steps=5)
        torch.testing.assert_close(one, single, rtol=1e-12, atol=1e-14)


def test_attributions_that_are_differentiated():
    model, x = net(), X.clone().requires_grad_()
    for one, target in zip(igfast.IntegratedGradients(model).attribute_targets(x, [0, 3]), [0, 3], strict=True):
        (gradient,) = torch.autograd.grad(one.sum(), x)
        single = igfast.IntegratedGradients(model).attribute(x, target=target)
        (expected,) = torch.autograd.grad(single.sum(), x)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([], igfast.TargetError, "at least one target"),
        ("top0", igfast.TargetError, "top0"),
        ("best", igfast.TargetTypeError, "'best'"),
        (3, igfast.TargetTypeError, "targets must be a list of targets; got 3"),
        ([1, (0, 2)], igfast.TargetTypeError, "targets must be of one kind"),
        ([1, [0, 1, 2]], igfast.TargetTypeError, "targets must be of one kind"),
        ([1, None], igfast.TargetTypeError, "must not hold None"),
        ([1, 5], igfast.TargetError, "5, out of range"),
        ([[0, 1], [1, 0]], igfast.TargetError, "one entry per example, 3; got 2"),
        ("top6", igfast.TargetError, 'targets is "top6", but forward_func returned 5 classes'),
        ([1.5], igfast.TargetTypeError, "must be an integer"),
    ],
)
def test_bad_targets(targets, error, message):
    with pytest.raises(error, match=message):
        igfast.IntegratedGradients(net()).attribute_targets(X, targets)


def test_top_needs_classes():
    with pytest.raises(igfast.OutputError, match=r'"top2" needs an output \(batch, classes\)'):
        igfast.IntegratedGradients(lambda x: x.sum(dim=1)).attribute_targets(X, "top2")


def test_subclasses_that_captum_computes_are_refused():
    class Mine(igfast.IntegratedGradients):
        def _attribute(self, *args, **kwargs):
            return captum.attr.IntegratedGradients._attribute(self, *args, **kwargs)

    with pytest.raises(igfast.ArgumentError, match="attribute_targets is not Captum's"):
        Mine(net()).attribute_targets(X, [0])


def test_the_largest_classes_of_models_that_drop_a_dimension():
    model = net()
    (found,) = igfast.IntegratedGradients(lambda x: model(x).squeeze(0)).attribute_targets(X[:1], "top1")
    single = igfast.IntegratedGradients(model).attribute(X[:1], target=int(model(X[:1]).argmax()))
    torch.testing.assert_close(found, single, rtol=1e-12, atol=1e-14)


def test_the_largest_classes_of_inputs_with_other_numbers_of_rows():
    model = net()

    def forward(a, b):
        return model(a) * b.mean()

    found = igfast.IntegratedGradients(forward).attribute_targets((X, torch.ones(5, 1).double()), "top2")
    assert [tuple(part.shape) for part in found[0]] == [(3, 6), (5, 1)]


def test_the_largest_classes_of_no_examples():
    found = igfast.IntegratedGradients(net()).attribute_targets(X[:0], "top3")
    assert [tuple(part.shape) for part in found] == [(0, 6)] * 3
    found = igfast.IntegratedGradients(net()).attribute_targets(X[:0], [[], []])
    assert [tuple(part.shape) for part in found] == [(0, 6)] * 2


def test_the_largest_classes_where_memory_does_not_hold_all():
    model = net()

    def forward(x):
        if len(x) > 1:
            raise MemoryError("not enough memory")
        return model(x)

    with pytest.warns(igfast.IgfastWarning):
        found = igfast.IntegratedGradients(forward).attribute_targets(X, "top2", n_steps=3)
    for one, target in zip(found, model(X).topk(2, dim=1).indices.T, strict=True):
        single = igfast.IntegratedGradients(model).attribute(X, target=target, n_steps=3)
        torch.testing.assert_close(one, single, rtol=1e-12, atol=1e-14)


def test_a_target_without_indices_for_each_example():
    model = net()
    explainer = igfast.IntegratedGradients(lambda x: model(x)[:, 1])
    assert torch.equal(explainer.attribute(X, target=[(), (), ()]), explainer.attribute(X))
