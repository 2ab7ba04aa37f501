"""Checks `target` once (which number of the output is attributed), and selects that number chunk by chunk.

The rules are Captum's. An int or a tuple picks the same place for every example. A one-dimensional tensor or a list of
ints picks a column for each example, a list of tuples a place for each.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from captum._utils.common import _select_targets
from torch import Tensor

from igfast.errors import OutputError, OutputTypeError, TargetError, TargetTypeError
from igfast.request.inputs import describe

Place = tuple[int | slice, ...]


@dataclass(frozen=True)
class Target:
    """A parsed target.

    Attributes:
        place: index behind the batch dimension that every row shares; () where the output is one number already.
        places: instead, one for each example, (batch, indices) int64 on the CPU; None where `place` holds.
    """

    place: Place = ()
    places: Tensor | None = None
    _places_on: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def per_example(self) -> Any:
        """Returns the place of every example, or a tuple of one for each; places of one index as a number."""
        if self.places is None:
            return self.place[0] if len(self.place) == 1 else self.place
        places = (tuple(place) for place in self.places.tolist())
        return tuple(place[0] if len(place) == 1 else place for place in places)

    def check_count(self, batch: int) -> None:
        """Raises TargetError unless the target has one entry for each of `batch` examples, or one for all."""
        if self.places is not None and len(self.places) != batch:
            raise TargetError(f"target must have one entry per example, {batch}; got {len(self.places)}")

    def select(self, output: Any, example: Tensor) -> Tensor:
        """Returns the target's number of each row, (rows,) of the output's dtype, with its graph.

        Args:
            output: what the forward function returned for a chunk; must be a tensor, (rows, ...).
            example: (rows,) int64, the example that each row belongs to.

        Raises:
            OutputTypeError: the output is not a tensor.
            OutputError: the output does not have one entry per row.
            TargetError: the target does not exist in the output, or does not come down to one number.
        """
        _check_output(output, example.shape[0])
        if self.places is not None:
            _check_places(self.places, output)
            index = self._on(self.places, output.device)[example.to(output.device)]
            rows = torch.arange(output.shape[0], device=output.device)
            selected: Tensor = output[(rows, *index.unbind(dim=1))]
        else:
            _check_place("target", self.place, output)
            selected = output[(slice(None), *self.place)] if self.place else output
        if selected.numel() != selected.shape[0]:
            raise TargetError(_not_one_number(self, output, selected))
        return selected.reshape(-1)

    def select_of_step(self, output: Any) -> Tensor:
        """Returns the target's number of each entry of a whole step's output, selected as Captum does.

        The output must be a tensor, (entries, ...). The result is (entries,) of the output's dtype, with its graph.
        Raises as in `select`.
        """
        _check_output(output, None)
        if self.places is None:
            _check_place("target", self.place, output)
        target = (self.place or None) if self.places is None else [tuple(place) for place in self.places.tolist()]
        try:
            selected: Tensor = _select_targets(output, target)
        except (AssertionError, IndexError, RuntimeError) as error:
            raise TargetError(f"target does not fit forward_func's output, {describe(output)}: {error}") from error
        if selected.dim() == 0 or selected.numel() != selected.shape[0]:
            raise TargetError(_not_one_number(self, output, selected))
        return selected.reshape(-1)

    def with_entry(self, output: Any) -> Any:
        """Returns an output of one example with its dimension of entries, which a model's `squeeze()` drops."""
        n_indices = len(self.place) if self.places is None else self.places.shape[1]
        return output.unsqueeze(0) if isinstance(output, Tensor) and output.dim() <= n_indices else output

    def _on(self, places: Tensor, device: torch.device) -> Tensor:
        """Returns the places on a device; they are copied there once, because a copy waits for a GPU."""
        if device not in self._places_on:
            self._places_on[device] = places.to(device)
        return self._places_on[device]


def entries_of(output: Any) -> int:
    """Returns the number of entries of an output; raises OutputTypeError, or OutputError if it has none."""
    _check_output(output, None)
    return int(output.shape[0])


def _check_output(output: Any, n_rows: int | None) -> None:
    if not isinstance(output, Tensor):
        raise OutputTypeError(
            f"forward_func must return a tensor; got {describe(output)}. Wrap it so that it picks one, for instance "
            "forward_func=lambda *args: model(*args)[0] for a tuple, model(*args).logits for an output object"
        )
    if output.dim() == 0 or (n_rows is not None and output.shape[0] != n_rows):
        rows = "" if n_rows is None else f" for {n_rows}"
        raise OutputError(
            f"forward_func must return one entry per example;{rows} it returned {describe(output)}. "
            "Outputs summed or averaged over the batch cannot be attributed example by example"
        )


def _check_place(name: str, place: Place, output: Tensor) -> None:
    if len(place) > output.dim() - 1:
        raise TargetError(
            f"{name} has {len(place)} indices, but forward_func returned {describe(output)}, which has "
            f"{output.dim() - 1} dimensions after the examples"
        )
    for position, (index, size) in enumerate(zip(place, output.shape[1:], strict=False)):
        if isinstance(index, int) and not -size <= index < size:
            raise TargetError(
                f"{name} is {index if len(place) == 1 else place}, out of range for dimension {position + 1} of the "
                f"output, which has size {size}: {describe(output)}"
            )


def _check_places(places: Tensor, output: Tensor) -> None:
    """Raises TargetError for the first example whose place is not in the output."""
    sizes = torch.tensor(output.shape[1 : 1 + places.shape[1]], device="cpu")
    outside = places.shape[1] > output.dim() - 1 or bool(((places < -sizes) | (places >= sizes)).any())
    for e, place in enumerate(places.tolist() if outside else []):
        _check_place(f"target[{e}]", tuple(place), output)


def _not_one_number(target: Target, output: Tensor, selected: Tensor) -> str:
    per_example = selected.numel() // max(selected.shape[0], 1)
    missing = not target.place and target.places is None
    what = "target is None" if missing else f"target leaves {per_example} numbers per example"
    return (
        f"{what}, but forward_func returned {describe(output)}: exactly one number per example can be attributed. "
        f"Pass target=, an int or a tuple of {output.dim() - 1}"
    )


def _as_int(value: object, name: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        raise TargetTypeError(f"{name} must be an integer; got {describe(value)}") from None


def _as_place(value: Any, name: str) -> tuple[int, ...]:
    if isinstance(value, tuple):
        return tuple(_as_int(index, name) for index in value)
    return (_as_int(value, name),)


def _per_example(places: list[tuple[int, ...]]) -> Target:
    if len({len(place) for place in places}) > 1:
        raise TargetTypeError("target must be a list of ints or of tuples of one length; got several lengths")
    found = torch.tensor(places, dtype=torch.int64, device="cpu")
    return Target(places=found if places else found.reshape(0, 1))


def parse_target(target: Any) -> Target:
    """Returns `target` as a `Target`.

    Args:
        target: None, an int, a tuple of ints and slices, or an integer tensor of one element or of one per example.
            Or a list of ints or tuples, one per example.

    Raises:
        TargetTypeError: another type.
        TargetError: a tensor of two or more dimensions.
    """
    if target is None:
        return Target()
    if isinstance(target, tuple):
        return Target(tuple(t if isinstance(t, slice) else _as_int(t, "target") for t in target))
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype is torch.bool:
            raise TargetTypeError(f"target must be an integer tensor; got {describe(target)}")
        if target.numel() == 1:
            return Target((int(target.item()),))
        if target.dim() != 1:
            raise TargetError(f"target must have shape (batch,) or one element; got {describe(target)}")
        target = target.tolist()
    if not isinstance(target, list):
        return Target((_as_int(target, "target"),))
    return _per_example([_as_place(t, f"target[{e}]") for e, t in enumerate(target)])
