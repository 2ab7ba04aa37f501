"""Saves and restores the random generators that a model may draw from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RandomState:
    """Saved states of PyTorch's generators on the CPU and, optionally, on a CUDA device.

    Attributes:
        cpu: the state of the CPU's generator.
        device: a CUDA device, or None.
        cuda: the state of that device's generator, or None.
    """

    cpu: torch.Tensor
    device: torch.device | None = None
    cuda: torch.Tensor | None = None

    def restore(self) -> None:
        """Sets the generators to the saved states."""
        torch.set_rng_state(self.cpu)
        if self.device is not None and self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


def random_state(device: torch.device) -> RandomState:
    """Returns the current states of the generators that a model on a device draws from."""
    if device.type != "cuda":
        return RandomState(torch.get_rng_state())
    return RandomState(torch.get_rng_state(), device, torch.cuda.get_rng_state(device))


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Puts the generators that a model on a device draws from back when the block ends."""
    before = random_state(device)
    try:
        yield
    finally:
        before.restore()
