"""Attributions of twenty architectures in float64, lean execution on against off."""

import warnings

import pytest
import torch

import igfast
from igfast.errors import IgfastWarning
from tests.lean import architectures
from tests.oracle import relative_difference


def channels_last(x):
    """The layouts that x has besides contiguous: one, if it is an image or a volume."""
    formats = {4: [torch.channels_last], 5: [torch.channels_last_3d]}
    return [x.contiguous(memory_format=memory_format) for memory_format in formats.get(x.dim(), [])]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize("name", architectures.TAKING_LEAN)
def test_lean_equals_plain(name):
    function, image, baseline = architectures.build(name)
    for x in (image, *channels_last(image)):
        results = []
        for lean in (True, False):  # True: anything that falls back is an error
            explainer = igfast.IntegratedGradients(function, lean=lean)
            results.append(explainer.attribute(x, baseline, target=1, n_steps=6, return_convergence_delta=True))
        (got, delta), (wanted, wanted_delta) = results
        assert relative_difference(got, wanted) <= 1e-12
        torch.testing.assert_close(delta, wanted_delta, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", architectures.FALLING_BACK)
def test_what_does_not_take_lean_is_reported_and_right(name):
    function, x, baseline = architectures.build(name)
    wanted = igfast.IntegratedGradients(function, lean=False).attribute(x, baseline, target=1, n_steps=6)
    with pytest.warns(IgfastWarning, match="lean execution does not fit this model"):
        got = igfast.IntegratedGradients(function).attribute(x, baseline, target=1, n_steps=6)
    assert relative_difference(got, wanted) <= 1e-12
    with warnings.catch_warnings():  # once is enough: it is remembered for the model
        warnings.simplefilter("error")
        igfast.IntegratedGradients(function).attribute(x, baseline, target=1, n_steps=6)
    with pytest.raises(igfast.LeanError, match="lean=True"):
        igfast.IntegratedGradients(function, lean=True).attribute(x, baseline, target=1, n_steps=6)
