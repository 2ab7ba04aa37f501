"""What a plan asks of a model."""

import pytest
import torch
from torch import nn

from igfast.model.modules import weight_bytes

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_weights_that_each_chunk_reads():
    linear, tied = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
    tied.weight = linear.weight
    tables = nn.Embedding(1000, 10), nn.EmbeddingBag(1000, 10)
    for model in (linear, nn.Sequential(linear, tied), nn.Sequential(*tables, linear, nn.LazyLinear(3))):
        assert weight_bytes(model, CPU) == 400
    assert weight_bytes(torch.jit.script(nn.Sequential(tables[0], linear)), CPU) == 400
    assert weight_bytes(nn.Sequential(linear, nn.Linear(10, 10, device="meta")), CPU) == 400
    assert weight_bytes(linear.half(), CPU) == 200
    assert weight_bytes(None, CPU) == 0
