"""What a plan asks of a model, and the rows of its chunks."""

import numpy as np
import pytest
import torch
from torch import nn

from igfast.model.modules import weight_bytes
from igfast.run.engine import RowsOfRule
from igfast.run.quadrature import Rule

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


@pytest.mark.parametrize("n_each", [1, 3])
def test_rows_of_a_rule_come_step_after_step(n_each):
    rule, batch = Rule(np.array([0.1, 0.5, 0.9]), np.array([0.3, 0.4, 0.3])), 4
    rows = RowsOfRule.of(rule, batch, CPU, halves=np.array([1.0, -1.0, 1.0]), n_each=n_each)
    assert len(rows) == 3 * n_each * batch
    each = [(step, line) for step in range(3) for line in range(n_each * batch)]
    for chunk in (slice(0, len(rows)), slice(0, 1), slice(5, 9), slice(len(rows) - 2, len(rows))):
        part, wanted = rows.part(chunk), each[chunk]
        assert part.lines.tolist() == [line for _, line in wanted]
        assert part.example.tolist() == [line % batch for _, line in wanted]
        assert part.alpha.tolist() == [rule.nodes[step] for step, _ in wanted]
        assert part.weight.tolist() == [rule.weights[step] / n_each for step, _ in wanted]
        assert part.halves.tolist() == [(-1.0) ** step for step, _ in wanted]
