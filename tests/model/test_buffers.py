"""Buffers that a forward pass in training mode changes are put back, whatever they are."""

import threading

import pytest
import torch
from torch import nn

import igfast
from igfast.model.state import buffers_restored

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Graph(nn.Module):
    """A layer of a graph network with its adjacency matrix, which it counts its calls in where `counts`."""

    def __init__(self, layout, counts=False):
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("adjacency", torch.eye(4).to_sparse(layout=layout))
        self.layer, self.counts = nn.Linear(3, 2), counts

    def forward(self, x):
        if self.counts:
            self.adjacency.values().add_(1)
        return torch.sparse.mm(self.adjacency, self.layer(x))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("counts", [False, True])
def test_sparse_buffers(layout, counts):
    model = Graph(layout, counts).train()
    before = model.adjacency.to_dense()
    igfast.IntegratedGradients(model).attribute(X, target=0, internal_batch_size=4)
    assert torch.equal(model.adjacency.to_dense(), before)


def test_batch_norm_that_does_not_know_its_size_yet():
    model = nn.Sequential(nn.Linear(3, 4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))
    igfast.IntegratedGradients(model).attribute(X, target=0, internal_batch_size=4)
    assert model[1].running_mean.shape == (4,)  # as after Captum's first forward pass


class Observer(nn.Module):
    """Resizes a buffer in its first forward pass, as observers of quantization do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x):
        if self.scale.shape != x.shape[1:]:
            self.scale.resize_(x.shape[1:]).fill_(1.0)
        return x * self.scale


def test_a_buffer_that_gets_another_shape():
    model = nn.Sequential(Observer(), nn.Linear(3, 2)).train()
    kept = model[0].scale
    igfast.IntegratedGradients(model).attribute(X, target=0, internal_batch_size=4)
    assert model[0].scale is kept
    assert torch.equal(kept, torch.tensor([2.0]))


class Broken(nn.Module):
    """A module whose buffer cannot be copied."""

    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.zeros(2))

    def forward(self, x):
        return x


def test_a_buffer_that_cannot_be_copied_leaves_the_others_as_they_were(monkeypatch):
    norm, broken = nn.BatchNorm1d(3), Broken()
    model = nn.Sequential(norm, broken)
    monkeypatch.setattr(type(broken.state), "clone", lambda self: _clone_unless(self, broken.state), raising=False)
    with pytest.raises(MemoryError), buffers_restored(model):
        pass
    monkeypatch.undo()
    before = norm.running_mean.clone()
    with buffers_restored(norm):
        norm(X)
    assert torch.equal(norm.running_mean, before)


def _clone_unless(tensor, this):
    if tensor is this:
        raise MemoryError
    return torch.clone(tensor)


def test_threads_that_reach_one_part_by_different_models():
    """The second call begins while the first is in its forward pass, and ends after it."""
    part = nn.BatchNorm1d(3).train()
    whole = nn.Sequential(part, nn.Identity())
    before, moved, ended = part.running_mean.clone(), threading.Event(), threading.Event()

    def first():
        with buffers_restored(part):
            part(X)
            moved.set()
            assert entered.wait(20)
        ended.set()

    entered = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert moved.wait(20)
    with buffers_restored(whole):
        entered.set()
        assert ended.wait(20)
        whole(X)
    thread.join()
    assert torch.equal(part.running_mean, before)
