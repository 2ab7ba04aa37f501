"""What autograd saves goes to main memory where nothing else helps; weights stay where they are."""

import pytest
import torch

from igfast.lean import LeanExecution
from igfast.memory.offload import Offload
from tests.lean.test_recompute import Network, chain


def counting(shapes):
    """A block as `Offload` that also counts what is copied."""

    class Counts(Offload):
        def __init__(self, weights):
            super().__init__(weights)
            pack = self.pack_hook

            def keep(tensor):
                packed = pack(tensor)
                if packed is not tensor:
                    shapes.append(tuple(tensor.shape))
                return packed

            self.pack_hook = keep

    return Counts


@pytest.mark.parametrize("recomputes", [False, True])
def test_what_is_saved_is_copied_but_for_weights(recomputes, monkeypatch):
    shapes = []
    monkeypatch.setattr("igfast.lean.execution.Offload", counting(shapes))
    network, x = Network(chain), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    lean = LeanExecution("", module=network, recomputes=recomputes)
    while lean.save_more(torch.device("cuda")):
        pass
    with lean.active():
        values = [network(x)]
    (grad,) = next(iter(lean.gradients(values, (x,))))
    torch.testing.assert_close(grad, torch.autograd.grad(network(x).sum(), x)[0], rtol=1e-12, atol=1e-14)
    assert shapes == [(4, 8)] * 3  # the result of each tanh; lean linear maps save their weights alone
    assert lean.swapped["linear"] == (0 if recomputes else 6)  # a block that runs again counts nothing


def test_views_and_layouts_come_back_as_they_were():
    weight, found = torch.randn(3, 5), []
    with Offload([weight]) as _:
        for tensor in (weight.T, torch.randn(2, 3, 4).permute(2, 0, 1), torch.randn(3)[::2]):
            x = tensor.clone().requires_grad_()
            found.append((x, (x * tensor).sum()))
    for (x, y), tensor in zip(found, (weight.T,), strict=False):
        assert torch.equal(torch.autograd.grad(y, x)[0], tensor)
