"""The states of all generators are saved: a model may be on other devices than its inputs."""

import torch

from igfast.rng import random_state


def test_of_the_cpu():
    before = random_state()
    first = torch.rand(3)
    before.restore()
    assert torch.equal(torch.rand(3), first)
    assert before.cuda == ()


def test_of_every_gpu(monkeypatch):
    states, restored = [torch.tensor([1]), torch.tensor([2])], {}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, index: restored.update({index: int(state)}))
    random_state().restore()
    assert restored == {0: 1, 1: 2}
