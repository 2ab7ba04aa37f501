"""Baselines of numbers: for tables, images and embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from igfast.errors import ArgumentError, InputError, InputTypeError
from igfast.request.inputs import describe


def zeros(inputs: Tensor) -> Tensor:
    """Returns zeros. For tables of standardised columns these are the means; for embeddings, no token at all.

    Args:
        inputs: (batch, *features).

    Returns:
        (batch, *features).

    Raises:
        InputTypeError: `inputs` is not a floating tensor.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3 (black images, zero embeddings).

    Example:
        >>> igfast.baselines.zeros(torch.ones(1, 2))
        tensor([[0., 0.]])
    """
    return torch.zeros_like(_checked(inputs))


def constant(inputs: Tensor, value: float | Sequence[float] | Tensor) -> Tensor:
    """Returns one value everywhere, or one for each channel. For images, a colour that does not occur in them.

    What has the colour of the baseline gets no attribution, whatever it is.

    Args:
        inputs: (batch, *features).
        value: a number, or one for each entry of dimension 1.

    Returns:
        (batch, *features).

    Raises:
        InputTypeError: `inputs` is not a floating tensor.
        ArgumentError: another number of values than entries of dimension 1.

    Source: Sturmfels, Lundberg, Lee 2020, doi:10.23915/distill.00022.

    Example:
        >>> igfast.baselines.constant(torch.zeros(1, 3), [1.0, 2.0, 3.0])
        tensor([[1., 2., 3.]])
    """
    return _per_channel(inputs, value, "value").expand_as(inputs).clone()


def black(
    inputs: Tensor, mean: float | Sequence[float] | Tensor = 0.0, std: float | Sequence[float] | Tensor = 1.0
) -> Tensor:
    """Returns black as a normalised image has it, (0 - mean) / std: no light. The usual first choice for photographs.

    Black parts of the image get no attribution, even where the object is black.

    Args:
        inputs: images, (batch, channels, *).
        mean: that the normalisation of pixels in [0, 1] subtracts, a number or one for each channel.
        std: that the normalisation divides by, likewise.

    Returns:
        (batch, channels, *).

    Raises:
        InputTypeError, ArgumentError: as in `constant`; also if `std` is not positive.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3.

    Example:
        >>> igfast.baselines.black(torch.zeros(1, 1, 1, 1), mean=0.5, std=0.25).item()
        -2.0
    """
    return _colour(inputs, 0.0, mean, std)


def white(
    inputs: Tensor, mean: float | Sequence[float] | Tensor = 0.0, std: float | Sequence[float] | Tensor = 1.0
) -> Tensor:
    """Returns white as a normalised image has it, (1 - mean) / std. For drawings and digits on white paper.

    Args:
        inputs: images, (batch, channels, *).
        mean: that the normalisation of pixels in [0, 1] subtracts, a number or one for each channel.
        std: that the normalisation divides by, likewise.

    Returns:
        (batch, channels, *).

    Raises:
        InputTypeError, ArgumentError: as in `black`.

    Source: Sturmfels, Lundberg, Lee 2020, doi:10.23915/distill.00022.

    Example:
        >>> igfast.baselines.white(torch.zeros(1, 1, 1, 1), mean=0.5, std=0.25).item()
        2.0
    """
    return _colour(inputs, 1.0, mean, std)


def uniform(inputs: Tensor, low: float | None = None, high: float | None = None, *, seed: int = 0) -> Tensor:
    """Returns uniform noise. No colour is privileged; average the attributions of several seeds.

    Args:
        inputs: (batch, *features).
        low: the lower bound; None is the smallest number of each example.
        high: the upper bound; None is the largest number of each example.
        seed: of the noise, which is the same on every device.

    Returns:
        (batch, *features).

    Raises:
        InputTypeError: `inputs` is not a floating tensor.
        ArgumentError: `low` is above `high`.

    Source: Sturmfels, Lundberg, Lee 2020, doi:10.23915/distill.00022.

    Example:
        >>> noise = igfast.baselines.uniform(torch.zeros(2, 3), low=-1, high=1, seed=1)
        >>> bool(noise.abs().max() <= 1)
        True
    """
    bottom, top = _bounds(inputs, low, high)
    return bottom + (top - bottom) * _noise(torch.rand, inputs, seed)


def gaussian(inputs: Tensor, std: float, *, seed: int = 0) -> Tensor:
    """Returns the inputs with Gaussian noise on them. Attributions tell what the noise destroys.

    Args:
        inputs: (batch, *features).
        std: standard deviation of the noise, in units of the inputs.
        seed: of the noise, which is the same on every device.

    Returns:
        (batch, *features).

    Raises:
        InputTypeError: `inputs` is not a floating tensor.
        ArgumentError: `std` is negative.

    Source: Sturmfels, Lundberg, Lee 2020, doi:10.23915/distill.00022; Smilkov and others 2017, arXiv:1706.03825.

    Example:
        >>> igfast.baselines.gaussian(torch.zeros(1, 2), std=0.0)
        tensor([[0., 0.]])
    """
    if std < 0:
        raise ArgumentError(f"std must not be negative; got {std}")
    return _checked(inputs) + std * _noise(torch.randn, inputs, seed)


def blurred(inputs: Tensor, sigma: float) -> Tensor:
    """Returns images without detail, blurred by a Gaussian. Absence is the absence of edges and textures.

    Even areas of an image get little attribution. The blur does not darken the border.

    Args:
        inputs: images, (batch, channels, height, width).
        sigma: standard deviation of the Gaussian, in pixels.

    Returns:
        (batch, channels, height, width).

    Raises:
        InputTypeError: `inputs` is not a floating tensor.
        InputError: `inputs` does not have four dimensions.
        ArgumentError: `sigma` is not positive.

    Source: Fong, Vedaldi 2017, arXiv:1704.03296, section 4.1; Sturmfels, Lundberg, Lee 2020.

    Example:
        >>> igfast.baselines.blurred(torch.ones(1, 1, 4, 4), sigma=2.0).allclose(torch.ones(1, 1, 4, 4))
        True
    """
    if _checked(inputs).dim() != 4:
        raise InputError(f"inputs must be images, (batch, channels, height, width); got {describe(inputs)}")
    if not sigma > 0:
        raise ArgumentError(f"sigma must be positive; got {sigma}")
    for dim in (2, 3):
        inputs = _blurred_along(inputs, dim, sigma)
    return inputs


def maximum_distance(inputs: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Returns for every feature the bound that is farther away. No feature has its own value in the baseline.

    The baseline holds an inverted image of the input, so the model may see something in the baseline.

    Args:
        inputs: (batch, *features).
        low: the lower bound; None is the smallest number of each example.
        high: the upper bound; None is the largest number of each example.

    Returns:
        (batch, *features).

    Raises:
        InputTypeError: `inputs` is not a floating tensor.
        ArgumentError: `low` is above `high`.

    Source: Sturmfels, Lundberg, Lee 2020, doi:10.23915/distill.00022.

    Example:
        >>> igfast.baselines.maximum_distance(torch.tensor([[0.2, 0.9]]), low=0.0, high=1.0)
        tensor([[1., 0.]])
    """
    bottom, top = _bounds(inputs, low, high)
    return torch.where(inputs - bottom > top - inputs, bottom, top).to(inputs.dtype)


def data_mean(inputs: Tensor, data: Tensor) -> Tensor:
    """Returns the mean of a data set for each example. For tables usually the first choice.

    Args:
        inputs: (batch, *features).
        data: the data set, (rows, *features).

    Returns:
        (batch, *features).

    Raises:
        InputTypeError: `inputs` or `data` is not a floating tensor.
        ArgumentError: `data` has no rows or other features.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3; Kindermans and others 2017, arXiv:1711.00867.

    Example:
        >>> igfast.baselines.data_mean(torch.zeros(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[2., 3.]])
    """
    mean = _rows_of(data, inputs).double().mean(dim=0, keepdim=True)
    return mean.to(inputs.device, inputs.dtype).expand_as(inputs).clone()


def random_inputs(inputs: Tensor, data: Tensor, *, seed: int = 0) -> Tensor:
    """Returns for each example a random row of a data set. Average the attributions of several seeds.

    Averaged, these are expected gradients: the attributions explain the difference to the mean output of the data.

    Args:
        inputs: (batch, *features).
        data: the data set, (rows, *features).
        seed: of the draw, which is the same on every device.

    Returns:
        (batch, *features).

    Raises:
        InputTypeError, ArgumentError: as in `data_mean`.

    Source: Erion and others 2021, arXiv:1906.10670.

    Example:
        >>> igfast.baselines.random_inputs(torch.zeros(3, 2), torch.ones(5, 2)).unique()
        tensor([1.])
    """
    rows = _rows_of(data, inputs)
    drawn = torch.randint(len(rows), (inputs.shape[0],), generator=torch.Generator().manual_seed(seed), device="cpu")
    return rows[drawn.to(rows.device)].to(inputs.device, inputs.dtype)


def _checked(inputs: Any, name: str = "inputs") -> Tensor:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise InputTypeError(f"{name} must be a floating tensor; got {describe(inputs)}")
    if inputs.dim() == 0:
        raise InputError(f"{name} must have the examples as its first dimension; got {describe(inputs)}")
    return inputs


def _per_channel(inputs: Tensor, value: Any, name: str) -> Tensor:
    """Returns a number, or one for each entry of dimension 1, in a shape that expands to the inputs'."""
    _checked(inputs)
    given = torch.as_tensor(value, dtype=inputs.dtype, device=inputs.device)
    if given.numel() == 1:
        return given.reshape((1,) * inputs.dim())
    if given.dim() != 1 or inputs.dim() < 2 or len(given) != inputs.shape[1]:
        raise ArgumentError(f"{name} must be a number, or one for each of dimension 1 of inputs, {describe(inputs)}")
    return given.reshape(1, -1, *(1,) * (inputs.dim() - 2))


def _colour(inputs: Tensor, pixel: float, mean: Any, std: Any) -> Tensor:
    middle, spread = _per_channel(inputs, mean, "mean"), _per_channel(inputs, std, "std")
    if not (spread > 0).all():
        raise ArgumentError("std must be positive")
    return ((pixel - middle) / spread).expand_as(inputs).clone()


def _bounds(inputs: Tensor, low: float | None, high: float | None) -> tuple[Tensor, Tensor]:
    """Returns the bounds, or the smallest and the largest number of each example, in a shape that expands."""
    if low is not None and high is not None and low > high:
        raise ArgumentError(f"low must not be above high; got {low} and {high}")
    flat = _checked(inputs).unsqueeze(-1).flatten(1)
    shape = (-1,) + (1,) * (inputs.dim() - 1)
    bottom = flat.amin(dim=1) if low is None else inputs.new_full((inputs.shape[0],), low)
    top = flat.amax(dim=1) if high is None else inputs.new_full((inputs.shape[0],), high)
    return bottom.reshape(shape), top.reshape(shape)


def _noise(draw: Callable[..., Tensor], inputs: Tensor, seed: int) -> Tensor:
    drawn = draw(inputs.shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    return drawn.to(inputs.device, inputs.dtype)


def _blurred_along(images: Tensor, dim: int, sigma: float) -> Tensor:
    """Returns images blurred along one dimension; at the border, the weights inside are scaled to sum to 1."""
    positions = torch.arange(images.shape[dim], dtype=torch.float64)
    weights = torch.exp(-0.5 * ((positions[:, None] - positions) / sigma) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(images.device, images.dtype)
    return torch.movedim(torch.movedim(images, dim, -1) @ weights.T, -1, dim).contiguous()


def _rows_of(data: Tensor, inputs: Tensor) -> Tensor:
    _checked(inputs)
    if _checked(data, "data").shape[1:] != inputs.shape[1:] or len(data) == 0:
        raise ArgumentError(
            f"data must have rows like those of inputs, (rows, {', '.join(map(str, inputs.shape[1:]))}); "
            f"got {describe(data)}"
        )
    return data
