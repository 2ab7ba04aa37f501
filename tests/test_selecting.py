import pytest
import torch
from torch import nn

import igfast
from tests import models


class Output:
    def __init__(self, logits):
        self.logits = logits


class Returns(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.network, self.kind = models.mlp(), kind

    def forward(self, x, scale=1):
        y = self.network(x) * scale
        return {"object": Output(y), "dict": {"logits": y}, "tuple": (y, 0)}[self.kind]


@pytest.mark.parametrize(("kind", "part"), [("object", "logits"), ("dict", "logits"), ("tuple", 0)])
def test_parts_of_outputs(kind, part):
    x = torch.randn(2, 3, dtype=torch.float64)
    selected = igfast.select_output(Returns(kind).eval(), part)
    assert isinstance(selected, nn.Module)
    assert not selected.training
    wanted = igfast.IntegratedGradients(models.mlp()).attribute(x, target=1)
    assert torch.equal(igfast.IntegratedGradients(selected).attribute(x, target=1), wanted)
    of_a_function = igfast.select_output(lambda x: Returns(kind)(x, scale=1), part)
    assert torch.equal(igfast.IntegratedGradients(of_a_function).attribute(x, target=1), wanted)


def test_bad_parts():
    with pytest.raises(igfast.ArgumentTypeError, match="part must be a name or a position in the output; got a float"):
        igfast.select_output(models.mlp(), 1.5)
    x = torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(igfast.OutputTypeError, match=r"returned a dict, which has no 'scores'; it has \['logits'\]"):
        igfast.select_output(Returns("dict"), "scores")(x)
    with pytest.raises(igfast.OutputTypeError, match="returned a Output, which has no 'scores'"):
        igfast.select_output(Returns("object"), "scores")(x)
    with pytest.raises(igfast.OutputTypeError, match="returned a tuple, which has no 5"):
        igfast.select_output(Returns("tuple"), 5)(x)
    with pytest.raises(igfast.OutputTypeError, match="returned a tensor, which has no parts: 0 would be one of its"):
        igfast.select_output(models.mlp(), 0)(x)
