"""igfast inside Captum's other tools, and as Captum's class where code asks for that."""

import inspect

import captum.attr
import pytest
import torch
from captum.attr import NoiseTunnel
from captum.metrics import infidelity, sensitivity_max

import igfast
from tests import models
from tests.oracle import relative_difference

CLASSES = igfast.IntegratedGradients, captum.attr.IntegratedGradients


def test_is_captums_class():
    explainer = igfast.IntegratedGradients(models.mlp())
    assert isinstance(explainer, captum.attr.IntegratedGradients)
    assert type(explainer).__name__ == "IntegratedGradients"
    assert explainer.get_name() == "Integrated Gradients"
    assert explainer.multiplies_by_inputs
    assert explainer.has_convergence_delta()
    with pytest.raises(NotImplementedError):
        explainer.attribute_future()


@pytest.mark.parametrize("method", ["__init__", "attribute"])
def test_signatures_begin_with_captums(method):
    ours, captums = (list(inspect.signature(getattr(c, method)).parameters.values()) for c in CLASSES)
    assert [(p.name, p.default, p.kind) for p in ours[: len(captums)]] == [(p.name, p.default, p.kind) for p in captums]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(captums) :])


def test_attribute_can_be_unwrapped():
    network, x = models.mlp(), torch.randn(2, 3, dtype=torch.float64)
    explainer = igfast.IntegratedGradients(network)
    assert torch.equal(explainer.attribute.__wrapped__(explainer, x, target=0), explainer.attribute(x, target=0))


@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("nt_samples_batch_size", [None, 2])
def test_noise_tunnel(nt_type, nt_samples_batch_size):
    network, x = models.convnet(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    results = []
    for explainer in CLASSES:
        torch.manual_seed(3)
        results.append(
            NoiseTunnel(explainer(network)).attribute(
                x,
                nt_type=nt_type,
                nt_samples=5,
                nt_samples_batch_size=nt_samples_batch_size,
                stdevs=0.2,
                baselines=torch.full((3, 3, 8, 8), 0.1, dtype=torch.float64),
                target=[0, 1, 2],
                n_steps=8,
                return_convergence_delta=True,
            )
        )
    (got, delta), (wanted, wanted_delta) = results
    assert relative_difference(got, wanted) <= 1e-6
    torch.testing.assert_close(delta, wanted_delta, rtol=0, atol=1e-7)


def test_infidelity_and_sensitivity():
    network, x = models.mlp(), torch.randn(4, 3, dtype=torch.float64)

    def perturb(inputs):
        noise = torch.randn_like(inputs) * 0.1
        return noise, inputs - noise

    results = []
    for explainer in (c(network) for c in CLASSES):
        torch.manual_seed(3)
        attributions = explainer.attribute(x, target=1)
        results.append(
            (
                infidelity(network, perturb, x, attributions, target=1, n_perturb_samples=7),
                sensitivity_max(explainer.attribute, x, target=1, n_perturb_samples=3),
            )
        )
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-8)
