"""PyTorch's transformer modules compute other values at padded positions where no graph is recorded."""

import captum.attr
import pytest
import torch
from torch import nn

import igfast
from tests.oracle import relative_difference


class Gated(nn.Module):
    """Reads padded positions, through a gate beside the attributed layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.near, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

    def forward(self, x, mask):
        gate = self.encoder(x, src_key_padding_mask=mask).mean(1).sigmoid()
        return self.head(self.near(x).mean(1) * gate)


X = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(6).expand(3, 6) >= torch.tensor([[4], [6], [3]])
ASKED = {"target": 1, "additional_forward_args": (MASK,), "n_steps": 200, "return_convergence_delta": True}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of nested tensors
@pytest.mark.parametrize("lean", ["auto", False])
def test_a_layer_gets_captums_numbers(lean):
    model = Gated().eval()
    wanted, _ = captum.attr.LayerIntegratedGradients(model, model.near).attribute(X, **ASKED)
    for _ in range(2):
        got, _ = igfast.LayerIntegratedGradients(model, model.near, lean=lean).attribute(X, **ASKED)
        assert relative_difference(got, wanted) <= 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("lean", ["auto", False])
def test_the_ends_are_those_of_the_path(lean):
    """So that completeness holds, in a first call and in later ones."""
    model = Gated().eval()
    for _ in range(2):
        got, delta = igfast.IntegratedGradients(model, lean=lean).attribute(X, **ASKED)
        assert delta.abs().max() <= 1e-3
        again = igfast.IntegratedGradients(model).compute_convergence_delta(got, 0, X, 1, MASK)
        torch.testing.assert_close(again, delta, rtol=0, atol=1e-6)
