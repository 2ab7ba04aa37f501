"""What the loop does beside attributing, which the tests of the interface check."""

import pytest
import torch
from torch import nn

import igfast
from igfast import engine
from igfast.attr._integration import _weight_bytes
from tests import models

CPU = torch.device("cpu")


@pytest.fixture
def waited(monkeypatch):
    devices = []
    monkeypatch.setattr(engine, "wait_for", devices.append)
    return devices


def test_a_device_is_waited_for_while_chunks_are_timed(waited):
    x = torch.randn(1, 3, 8, 8)
    explainer = igfast.IntegratedGradients(models.convnet().float())
    _, report = explainer.attribute(x, target=1, n_steps=64, internal_batch_size=1, return_report=True)
    assert report.chunks == {1: 64}
    assert waited == [CPU] * len(waited)
    assert 4 <= len(waited) <= 16  # two chunks, and two of the other layout, up to four times


def test_nobody_waits_where_there_is_nothing_to_try(waited):
    explainer = igfast.IntegratedGradients(models.mlp(n_features=6))
    explainer.attribute(torch.randn(1, 6, dtype=torch.float64), target=1, n_steps=20, internal_batch_size=1)
    assert waited == []


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
def test_weights_that_each_chunk_reads():
    linear, tied = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
    tied.weight = linear.weight
    tables = nn.Embedding(1000, 10), nn.EmbeddingBag(1000, 10)
    for model in (linear, nn.Sequential(linear, tied), nn.Sequential(*tables, linear, nn.LazyLinear(3))):
        assert _weight_bytes(model, CPU) == 400
    assert _weight_bytes(torch.jit.script(nn.Sequential(tables[0], linear)), CPU) == 400
    assert _weight_bytes(nn.Sequential(linear, nn.Linear(10, 10, device="meta")), CPU) == 400
    assert _weight_bytes(linear.half(), CPU) == 200
    assert _weight_bytes(None, CPU) == 0
