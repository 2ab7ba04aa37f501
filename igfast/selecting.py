"""Wraps a model as a function that returns one part of the model's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from igfast.errors import ArgumentTypeError, OutputTypeError


class _Selected(nn.Module):
    def __init__(self, model: nn.Module, part: str | int) -> None:
        super().__init__()
        self.model = model
        self.part = part
        self.training = getattr(model, "training", False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns that part of the model's output."""
        return _part_of(self.model(*args, **kwargs), self.part)


def select_output(model: Callable[..., Any], part: str | int) -> Callable[..., Any]:
    """Wraps a model that returns a tuple, a dict or a Hugging Face output object, so that it returns one part of that.

    Args:
        model: a module or any function.
        part: the name or the position of what the wrapper returns: `select_output(model, "logits")`.

    Returns:
        A function of the same arguments; a module, in the same mode, if `model` is a module.

    Raises:
        ArgumentTypeError: `part` is neither a name nor a position.
        OutputTypeError: raised by the returned function if the output has no such part, or is a tensor.
    """
    if not isinstance(part, (str, int)) or isinstance(part, bool):
        raise ArgumentTypeError(f"part must be a name or a position in the output; got a {type(part).__name__}")
    if isinstance(model, nn.Module):
        return _Selected(model, part)
    return lambda *args, **kwargs: _part_of(model(*args, **kwargs), part)


def _part_of(output: Any, part: str | int) -> Any:
    if isinstance(part, str) and not isinstance(output, Mapping):
        if not hasattr(output, part):
            raise OutputTypeError(f"the model returned a {type(output).__name__}, which has no {part!r}")
        return getattr(output, part)
    if isinstance(output, Tensor):
        raise OutputTypeError(f"the model returned a tensor, which has no parts: {part!r} would be one of its examples")
    try:
        return output[part]
    except (KeyError, IndexError, TypeError):
        has = f"; it has {list(output)}" if isinstance(output, Mapping) else ""
        raise OutputTypeError(f"the model returned a {type(output).__name__}, which has no {part!r}{has}") from None
