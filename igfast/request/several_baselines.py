"""Several baselines for each example, over which attributions are averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from igfast.errors import ArgumentError, ArgumentTypeError, BaselineError
from igfast.request.inputs import describe


@dataclass(frozen=True)
class Baselines:
    """Baselines over which attributions are averaged: the data's own, say.

    The attributions then sum to F(input) less the mean of F over the baselines. The average over all baselines of a
    data set, or over random ones, is called expected gradients.

    Attributes:
        data: (K, *features); for several inputs a tuple of such tensors, whose rows belong together.
        n_samples: how many of the K baselines each example gets, drawn at random for each example; None means all.
        seed: of the draw, which is the same on every device.

    Raises:
        ArgumentTypeError: `data` is not a tensor or a tuple of tensors, or `n_samples` not an integer.
        ArgumentError: there are no baselines, tensors of different numbers of rows, or fewer baselines than
            `n_samples`.

    Source: Erion and others 2021, "Improving performance of deep learning models with axiomatic attribution priors and
        expected gradients", Nature Machine Intelligence 3, arXiv:1906.10670.

    Example:
        >>> model, background = torch.nn.Linear(3, 2), torch.rand(16, 3)
        >>> explainer = igfast.IntegratedGradients(model)
        >>> explainer.attribute(torch.ones(1, 3), igfast.Baselines(background), target=0).shape
        torch.Size([1, 3])
    """

    data: Any
    n_samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        given = self.tensors
        for one in given:
            if not isinstance(one, Tensor) or one.dim() < 1:
                raise ArgumentTypeError(
                    f"Baselines needs a tensor (K, *features), or a tuple of them; got {describe(one)}"
                )
        if len({len(one) for one in given}) != 1 or len(given[0]) == 0:
            rows = ", ".join(str(len(one)) for one in given) or "none"
            raise ArgumentError(f"Baselines needs at least one baseline, as many for each input; got rows {rows}")
        if self.n_samples is None:
            return
        if isinstance(self.n_samples, bool) or not isinstance(self.n_samples, (int, np.integer)):
            raise ArgumentTypeError(f"n_samples must be an integer; got {describe(self.n_samples)}")
        if not 1 <= self.n_samples <= len(given[0]):
            raise ArgumentError(f"n_samples must be 1 to {len(given[0])}, the baselines; got {self.n_samples}")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The data as a tuple, one for each input."""
        return self.data if isinstance(self.data, tuple) else (self.data,)

    @property
    def n_each(self) -> int:
        """The number of baselines of each example."""
        return len(self.tensors[0]) if self.n_samples is None else int(self.n_samples)

    def chosen(self, batch: int) -> NDArray[np.int64]:
        """Returns which baselines each example has, (n_each, batch)."""
        if self.n_samples is None:
            return np.repeat(np.arange(self.n_each, dtype=np.int64)[:, None], batch, axis=1)
        generator = np.random.default_rng(self.seed)
        total = len(self.tensors[0])
        draws = [generator.choice(total, size=self.n_each, replace=False) for _ in range(batch)]
        return np.array(draws, dtype=np.int64).reshape(batch, self.n_each).T

    def check(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the baselines of each input in its dtype; raises BaselineError where shapes or devices do not fit."""
        if len(self.tensors) != len(inputs):
            raise BaselineError(f"Baselines has {len(self.tensors)} tensors for {len(inputs)} inputs")
        for index, (one, x) in enumerate(zip(self.tensors, inputs, strict=True)):
            if one.shape[1:] != x.shape[1:] or (one.is_complex() and not x.is_complex()):
                raise BaselineError(
                    f"Baselines of inputs[{index}] must have shape {('K', *x.shape[1:])}; got {describe(one)}"
                )
            if one.device != x.device:
                raise BaselineError(f"Baselines are on {one.device}, but inputs[{index}] is on {x.device}")
        return tuple(one.detach().to(x.dtype) for one, x in zip(self.tensors, inputs, strict=True))
