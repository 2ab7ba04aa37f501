"""Numbers: against the naive float64 loop and against Captum."""

import captum.attr
import pytest
import torch

import igfast
from tests import models
from tests.oracle import naive_integrated_gradients, relative_difference

CAPTUM_METHODS = [m for m in igfast.METHODS if m != "trapezoid"]


def captum_bound(method):
    """Captum's weights, and for the Riemann rules its nodes, are float32."""
    return 1e-7 if method == "gausslegendre" else 1e-5


@pytest.fixture(scope="module", params=["efficientnet", "resnet", "vit", "convnext"])
def network_and_image(request):
    if request.param == "efficientnet":
        from igfast.cli.photograph import load_photograph

        return models.efficientnet().double(), load_photograph(32).double()
    return models.transformers_model(request.param)


RULES = [(m, n) for m in igfast.METHODS for n in (1, 7, 50) if n > 1 or "trapezoid" not in m]


@pytest.mark.parametrize(("method", "n_steps"), RULES)
def test_architectures_in_float64(network_and_image, method, n_steps):
    network, image = network_and_image
    target, baseline = 3, torch.full_like(image, -0.3)
    wanted = naive_integrated_gradients(lambda x: network(x)[:, target], (image,), (baseline,), n_steps, method)[0]
    explainer = igfast.IntegratedGradients(network)
    for internal_batch_size in {1: (None, 1), 7: (None, 1, 3), 50: (None, 4, 50)}[n_steps]:
        got = explainer.attribute(
            image, baseline, target, n_steps=n_steps, method=method, internal_batch_size=internal_batch_size
        )
        assert relative_difference(got, wanted) <= 1e-12
    if method in CAPTUM_METHODS and n_steps > 1:
        captums = captum.attr.IntegratedGradients(network).attribute(
            image, baseline, target, n_steps=n_steps, method=method, internal_batch_size=10
        )
        assert relative_difference(got, captums) <= captum_bound(method)


def test_float32_is_as_accurate_as_captum():
    from igfast.cli.photograph import BLACK, load_photograph

    network, image = models.efficientnet(), load_photograph(224)
    arguments = {"baselines": BLACK, "target": 285}
    got = igfast.IntegratedGradients(network).attribute(image, **arguments)
    captums = captum.attr.IntegratedGradients(network).attribute(image, **arguments, internal_batch_size=5)
    network.double()
    # One float64 attribution takes 10 s; igfast's own is checked against the naive loop above.
    exact = igfast.IntegratedGradients(network).attribute(
        image.double(), baselines=float(torch.tensor(BLACK)), target=285, internal_batch_size=5
    )
    assert relative_difference(got, exact) <= 1.1 * relative_difference(captums, exact)


@pytest.mark.parametrize("internal_batch_size", [None, 1, 2, 3, 4, 5, 9, 1000])
@pytest.mark.parametrize("method", igfast.METHODS)
def test_batches_and_chunks(method, internal_batch_size):
    network, x = models.convnet(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    baseline, target = torch.randn(4, 3, 8, 8, dtype=torch.float64), [1, 2, 3, 4]
    got, delta = igfast.IntegratedGradients(network).attribute(
        x,
        baseline,
        target,
        n_steps=11,
        method=method,
        internal_batch_size=internal_batch_size,
        return_convergence_delta=True,
    )

    def forward(points):
        return network(points)[range(4), target]

    wanted = naive_integrated_gradients(forward, (x,), (baseline,), 11, method)[0]
    assert relative_difference(got, wanted) <= 1e-12
    wanted_delta = wanted.flatten(1).sum(1) - (forward(x) - forward(baseline)).detach()
    torch.testing.assert_close(delta, wanted_delta, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_steps", [2, 5])
@pytest.mark.parametrize("method", igfast.METHODS)
def test_what_is_evaluated_beside_the_path(method, n_steps):
    """In a first call that of the caller, and a step alone, twice. Of two steps the last too. For a delta the ends."""
    network, rows = models.mlp(), {True: 0, False: 0}

    def forward(x):
        rows[torch.is_grad_enabled()] += x.shape[0]
        return network(x)

    def evaluated(**options):
        rows.update({True: 0, False: 0})
        explainer.attribute(x, target=0, n_steps=n_steps, method=method, **options)
        assert rows[True] == 3 * n_steps
        return rows[False]

    explainer = igfast.IntegratedGradients(forward)
    x = torch.randn(3, 3, dtype=torch.float64)
    assert evaluated() == 3 * (4 if n_steps == 2 else 3)
    assert evaluated() == 0
    assert evaluated(return_convergence_delta=True) == 3 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_never_more_rows_than_internal_batch_size_on_the_path(dtype):
    network, rows = models.convnet().to(dtype), []

    def forward(x):
        if torch.is_grad_enabled():
            rows.append(x.shape[0])
        return network(x)

    x = torch.randn(5, 3, 8, 8, dtype=dtype)
    igfast.IntegratedGradients(forward).attribute(x, target=0, n_steps=4, internal_batch_size=3)
    assert max(rows) == 3
    assert sum(rows) == 5 * 4


def test_a_flat_baseline_in_float64():
    """All windows of a max pool over it tie, as long as all of its cells are computed alike."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 7, 2, 3), torch.nn.MaxPool2d(3, 2, 1), torch.nn.Flatten())
    network = network.double().eval()
    image, baseline = (torch.rand(1, 3, 64, 64, dtype=torch.float64) for _ in range(2))
    baseline.fill_(-0.3)
    wanted = naive_integrated_gradients(lambda x: network(x).square().sum(1), (image,), (baseline,), 4, "trapezoid")[0]
    got = igfast.IntegratedGradients(lambda x: network(x).square().sum(1)).attribute(
        image, baseline, n_steps=4, method="trapezoid"
    )
    assert relative_difference(got, wanted) <= 1e-12


@pytest.mark.parametrize("multiply_by_inputs", [True, False])
def test_tuple_inputs_with_additional_arguments(multiply_by_inputs):
    network = models.TwoInputs()
    inputs = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, 4, dtype=torch.float64)
    baselines = 0.25, torch.randn(1, 2, 4, dtype=torch.float64)
    scale = torch.rand(5, 1, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 0])
    arguments = {
        "baselines": baselines,
        "target": target,
        "additional_forward_args": (scale, 2),
        "return_convergence_delta": True,
    }
    got, delta = igfast.IntegratedGradients(network, multiply_by_inputs).attribute(
        inputs, **arguments, internal_batch_size=3
    )
    captums, captums_delta = captum.attr.IntegratedGradients(network, multiply_by_inputs).attribute(inputs, **arguments)
    wanted = naive_integrated_gradients(
        lambda a, b: network(a, b, scale, 2)[range(5), target],
        inputs,
        (torch.full_like(inputs[0], 0.25), baselines[1].expand(5, 2, 4)),
        50,
        multiply_by_inputs=multiply_by_inputs,
    )
    assert isinstance(got, tuple)
    assert relative_difference(got, wanted) <= 1e-12
    assert relative_difference(got, captums) <= 1e-7
    torch.testing.assert_close(delta, captums_delta, rtol=0, atol=1e-7)


def forward_3d(x):
    """(batch, 3) to (batch, 2, 3, 2), every output different."""
    powers = torch.stack([x**k for k in range(1, 5)], dim=-1)
    return powers.reshape(x.shape[0], 3, 2, 2).transpose(1, 2).cumsum(dim=2)


@pytest.mark.parametrize(
    ("forward", "target"),
    [
        (models.mlp(), 2),
        (models.mlp(), -1),
        (models.mlp(), (1,)),
        (models.mlp(), torch.tensor(3)),
        (models.mlp(), torch.tensor([3])),
        (models.mlp(), torch.tensor([3, 0, 1])),
        (models.mlp(), [3, 0, 1]),
        (models.mlp(), [(3,), (0,), (1,)]),
        (forward_3d, (1, 2, 0)),
        (forward_3d, (-1, -2, 1)),
        (forward_3d, (1, slice(1, 2), 0)),
        (forward_3d, [(0, 0, 1), (1, 2, 0), (1, 1, 1)]),
        (lambda x: models.mlp()(x)[:, :1], None),
        (lambda x: models.mlp()(x)[:, 0], None),
        (lambda x: models.mlp()(x)[:, 0].reshape(-1, 1, 1), None),
    ],
)
def test_targets_as_in_captum(forward, target):
    x = torch.randn(3, 3, dtype=torch.float64)
    got = igfast.IntegratedGradients(forward).attribute(x, target=target, internal_batch_size=2)
    wanted = captum.attr.IntegratedGradients(forward).attribute(x, target=target)
    assert relative_difference(got, wanted) <= 1e-7


def test_linear_model_by_hand():
    """IG of a linear function is (x - baseline) * weight, whatever the rule (arXiv:1703.01365, section 2)."""
    network = torch.nn.Linear(3, 2, bias=False).double()
    network.weight.data = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 5.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 1.0, 2.0]], dtype=torch.float64)
    got, delta = igfast.IntegratedGradients(network).attribute(x, 0.5, 0, n_steps=3, return_convergence_delta=True)
    torch.testing.assert_close(got, torch.tensor([[0.5, 1.0, 4.5]], dtype=torch.float64))
    torch.testing.assert_close(delta, torch.zeros(1, dtype=torch.float64))


def test_compute_convergence_delta_agrees():
    network, x = models.mlp(), torch.randn(3, 3, dtype=torch.float64)
    explainer = igfast.IntegratedGradients(network)
    got, delta = explainer.attribute(x, 0.1, 1, n_steps=4, return_convergence_delta=True)
    assert explainer.has_convergence_delta()
    torch.testing.assert_close(explainer.compute_convergence_delta(got, 0.1, x, target=1), delta)
