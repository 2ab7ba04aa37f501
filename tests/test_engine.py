"""What the loop does beside attributing, which the tests of the interface check."""

import torch

import igfast
from igfast import engine
from tests import models


def test_a_device_is_waited_for_while_chunks_are_timed(monkeypatch):
    waited = []
    monkeypatch.setattr(engine, "wait_for", waited.append)
    explainer = igfast.IntegratedGradients(models.mlp(n_features=6))
    x = torch.randn(1, 6, dtype=torch.float64)
    explainer.attribute(x, target=1, n_steps=20, internal_batch_size=1)
    assert waited == [x.device] * 2  # the second chunk settles it: no other layout, no other size
    explainer.attribute(x, target=1, n_steps=20, internal_batch_size=1)
    assert len(waited) == 2
