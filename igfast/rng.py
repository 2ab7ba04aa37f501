"""Saves and restores the random generators that a model may draw from."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RandomState:
    """Saved states of PyTorch's generators.

    Attributes:
        cpu: the state of the CPU's generator.
        cuda: the state of each CUDA device's generator; empty where CUDA is not in use.
    """

    cpu: torch.Tensor
    cuda: tuple[torch.Tensor, ...] = ()

    def restore(self) -> None:
        """Sets the generators to the saved states."""
        torch.set_rng_state(self.cpu)
        for index, state in enumerate(self.cuda):
            torch.cuda.set_rng_state(state, index)


def random_state() -> RandomState:
    """Returns the current states of all generators: a model's layers may be on other devices than its inputs."""
    cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()
    return RandomState(torch.get_rng_state(), cuda)
