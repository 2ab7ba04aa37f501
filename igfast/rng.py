"""The random generators that a model may draw from, and how they were."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RandomState:
    """The generators of the CPU and, maybe, of a CUDA device, as they were.

    Attributes:
        cpu: the state of PyTorch's generator on the CPU.
        device: a CUDA device, or None.
        cuda: the state of its generator.
    """

    cpu: torch.Tensor
    device: torch.device | None = None
    cuda: torch.Tensor | None = None

    def restore(self) -> None:
        """Puts them back."""
        torch.set_rng_state(self.cpu)
        if self.device is not None and self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


def random_state(device: torch.device) -> RandomState:
    """The state of the generators that a model on a device draws from."""
    if device.type != "cuda":
        return RandomState(torch.get_rng_state())
    return RandomState(torch.get_rng_state(), device, torch.cuda.get_rng_state(device))
