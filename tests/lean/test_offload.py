"""What autograd saves goes to main memory where nothing else helps; weights stay where they are."""

import pytest
import torch

import igfast
from igfast.lean import Execution
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
                if packed[0] is not tensor:
                    shapes.append(tuple(tensor.shape))
                return packed

            self.pack_hook = keep

    return Counts


@pytest.mark.parametrize("recomputes", [False, True])
def test_what_is_saved_is_copied_but_for_weights(recomputes, monkeypatch):
    shapes = []
    monkeypatch.setattr("igfast.lean.execution.Offload", counting(shapes))
    network, x = Network(chain), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    lean = Execution("", module=network, recomputes=recomputes, weights=network.parameters)
    while lean.save_more(torch.device("cuda")):
        pass
    with lean.active():
        values = [network(x)]
    (grad,) = next(iter(lean.gradients(values, (x,))))
    torch.testing.assert_close(grad, torch.autograd.grad(network(x).sum(), x)[0], rtol=1e-12, atol=1e-14)
    assert shapes == [(4, 8)] * 3  # the result of each tanh; lean linear maps save their weights alone
    assert lean.swapped["linear"] == (0 if recomputes else 6)  # a block that runs again counts nothing


def test_the_weights_of_a_model_behind_a_function_are_known(monkeypatch):
    network, seen = Network(chain), []

    class Records(Execution):
        def __init__(self, *args, **given):
            super().__init__(*args, **given)
            seen.append(list(self._weights()))

    monkeypatch.setattr("igfast.run.integration.Execution", Records)
    x = torch.randn(4, 6, dtype=torch.float64)
    igfast.IntegratedGradients(lambda x: network(x)).attribute(x, target=1, n_steps=2)
    assert list(map(id, seen[0])) == list(map(id, network.parameters()))


@pytest.mark.parametrize("tensor", [torch.randn(2, 3, 4).permute(2, 0, 1), torch.randn(6)[::2], torch.zeros(0, 3)])
def test_tensors_come_back_as_they_were(tensor):
    with Offload([]):
        x = torch.ones_like(tensor).requires_grad_()
        y = (x * tensor).sum()
    assert torch.equal(torch.autograd.grad(y, x)[0], tensor)


def test_sparse_matrices_come_back():
    matrix = torch.randn(3, 4).relu().to_sparse()
    x = torch.randn(4, 2, requires_grad=True)
    with Offload([]):
        y = torch.sparse.mm(matrix, x).sum()
    torch.testing.assert_close(torch.autograd.grad(y, x)[0], matrix.to_dense().sum(0)[:, None].expand(4, 2))


def test_a_weight_that_changes_before_the_backward_pass_is_an_error():
    weight, x = torch.randn(3), torch.randn(3, requires_grad=True)
    with Offload([weight]):
        y = (x * weight).sum()
    weight.add_(1)
    with pytest.raises(RuntimeError, match="a weight was modified by an inplace operation"):
        torch.autograd.grad(y, x)


def test_main_memory_that_would_run_out_is_left_alone(monkeypatch):
    monkeypatch.setattr("igfast.memory.offload.available_bytes", lambda: 3 * 2**24)
    x = torch.randn(2**22 + 1, requires_grad=True)  # just above 16 MiB
    with Offload([]):
        x.sin()
    monkeypatch.setattr("igfast.memory.offload.available_bytes", lambda: 2**24)
    with Offload([]), pytest.raises(MemoryError, match="main memory does not hold"):
        x.sin()
