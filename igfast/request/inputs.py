"""Checks the caller's inputs and baselines, and brings them to one form: floating tensors that fit each other."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from igfast.errors import ArgumentError, ArgumentTypeError, BaselineError, InputError, InputTypeError, warn


def describe(value: object) -> str:
    """Returns a value as errors show it: a tensor's shape, dtype and device (never its numbers), else the type."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    if isinstance(value, (bool, int, float)):
        return repr(value)
    return f"a {type(value).__name__}"


@dataclass(frozen=True)
class Inputs:
    """The tensors to attribute, ready for the operators.

    Rows belong together where the output of one example depends on the others. All inputs are then one joint example,
    and the batch is 1. `x` and `baselines` have a leading dimension of 1, which `join` removes from path points.

    Attributes:
        x: the inputs, (batch, *features) each, floating or complex, detached from any graph.
        baselines: one for each input, of its dtype and on its device: 0-d, (1, *features) or (batch, *features).
        is_tuple: whether the caller passed a tuple, and gets one back.
        integer: positions of inputs that came as integers; the path points of those are floating.
        batch: number of examples; 1 for a joint one.
        why_joint: why all inputs are one joint example; empty if they are not.
        name: the name of the inputs in messages.
    """

    x: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    is_tuple: bool
    integer: tuple[int, ...]
    batch: int
    why_joint: str
    name: str = "inputs"

    @property
    def joint(self) -> bool:
        """Whether all inputs are one joint example."""
        return bool(self.why_joint)

    @property
    def device(self) -> torch.device:
        """The device of all inputs."""
        return self.x[0].device

    @property
    def row_bytes(self) -> int:
        """Bytes of one path point, all inputs together."""
        return sum(x.element_size() * (x.numel() // max(x.shape[0], 1)) for x in self.x)

    def join(self, points: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns path points in the shape that the forward function takes."""
        return tuple(point.squeeze(0) for point in points) if self.joint else points

    def as_one_example(self, why: str) -> Inputs:
        """Returns all inputs as one joint example; `why` is the reason."""
        if self.joint:
            return self
        baselines = tuple(
            b if b.dim() == 0 else b.expand_as(x).unsqueeze(0) for x, b in zip(self.x, self.baselines, strict=True)
        )
        x = tuple(x.unsqueeze(0) for x in self.x)
        return Inputs(x, baselines, self.is_tuple, self.integer, 1, why, self.name)

    def format(self, tensors: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """Returns one tensor for each input in the form of the caller's inputs: a tuple, or the tensor alone."""
        return tensors if self.is_tuple else tensors[0]


def _check_input(index: int, x: object, device: torch.device | None) -> None:
    name = f"inputs[{index}]"
    if not isinstance(x, Tensor):
        raise InputTypeError(f"inputs must be a tensor or a tuple of tensors; {name} is {describe(x)}")
    if x.layout is not torch.strided or x.is_nested:
        raise InputError(f"{name} must be a dense tensor; got layout {x.layout}. Use {name}.to_dense()")
    if x.dim() == 0:
        raise InputError(f"{name} must have the examples as its first dimension; got {describe(x)}. Use .unsqueeze(0)")
    if x.dtype is torch.bool:
        raise InputTypeError(f"{name} is {describe(x)}: there is no path between truth values. Use {name}.float()")
    if device is not None and x.device != device:
        raise InputError(f"inputs must be on one device; inputs[0] is on {device}, {name} is on {x.device}")


def _floating(x: Tensor) -> Tensor:
    """Returns the tensor as its path points are: integers become the default dtype, as in Captum's arithmetic."""
    x = x.detach()
    return x if x.is_floating_point() or x.is_complex() else x.to(torch.get_default_dtype())


def check_baseline(index: int, baseline: object, x: Tensor) -> Tensor:
    """Returns a baseline that is a tensor, detached, if its shape and device fit an input; raises otherwise.

    The result is of the input's shape, or (1, *features). A baseline of one row broadcasts, as in Captum.
    """
    name = f"baselines[{index}]"
    if not isinstance(baseline, Tensor):
        raise ArgumentTypeError(f"{name} must be a tensor or a number; got {describe(baseline)}")
    one_row = (1, *x.shape[1:])
    if baseline.shape != x.shape and not (baseline.shape[:1] == (1,) and _broadcasts(baseline, one_row)):
        raise BaselineError(
            f"{name} must have the shape of inputs[{index}], {tuple(x.shape)}, or be one row that broadcasts to "
            f"{one_row}, or a number; got {describe(baseline)}"
        )
    if baseline.device != x.device:
        raise BaselineError(f"{name} is on {baseline.device}, but inputs[{index}] is on {x.device}")
    return baseline.detach() if baseline.shape == x.shape else baseline.detach().expand(one_row)


def _broadcasts(baseline: Tensor, shape: tuple[int, ...]) -> bool:
    sizes = zip(reversed(baseline.shape), reversed(shape), strict=False)
    return baseline.dim() <= len(shape) and all(size in (1, wanted) for size, wanted in sizes)


def _baseline_for(index: int, baseline: object, x: Tensor) -> Tensor:
    if isinstance(baseline, (int, float)):
        return torch.full((), baseline, dtype=x.dtype, device=x.device)
    checked = check_baseline(index, baseline, x)
    if checked.is_complex() and not x.is_complex():
        raise BaselineError(f"baselines[{index}] is complex, but inputs[{index}] is {describe(x)}")
    return checked.to(x.dtype)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Returns a tuple as it is, None as an empty one, and anything else as a tuple of one."""
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def one_for_each(baselines: Any, n_inputs: int) -> tuple[Any, ...]:
    """Returns the baselines as a tuple, one for each input; zeros where none are given."""
    if baselines is None:
        return (0,) * n_inputs
    given = baselines if isinstance(baselines, tuple) else (baselines,)
    if len(given) != n_inputs:
        raise BaselineError(f"baselines must be one for each input, in a tuple of length {n_inputs}; got {len(given)}")
    return given


def parse_inputs(inputs: Any, baselines: Any) -> Inputs:
    """Checks `inputs` and `baselines` and returns both as `Inputs`; nothing of the caller's is changed.

    Raises:
        InputTypeError: not tensors, bool, or an empty tuple.
        InputError: 0-d, sparse or nested, or on several devices.
        BaselineError: a shape, a device, a complex dtype or the number of baselines does not fit.
        ArgumentTypeError: a baseline that is neither a tensor nor a number.
    """
    is_tuple = isinstance(inputs, tuple)
    given = inputs if is_tuple else (inputs,)
    if not given:
        raise InputTypeError("inputs must be a tensor or a tuple of at least one tensor; got an empty tuple")
    for index, x in enumerate(given):
        _check_input(index, x, given[0].device if index else None)
    baselines = one_for_each(baselines, len(given))
    xs = tuple(_floating(x) for x in given)
    parsed = tuple(_baseline_for(index, b, x) for index, (b, x) in enumerate(zip(baselines, xs, strict=True)))
    integer = tuple(i for i, x in enumerate(given) if not (x.is_floating_point() or x.is_complex()))
    checked = Inputs(xs, parsed, is_tuple, integer, xs[0].shape[0], "")
    differ = len({x.shape[0] for x in xs}) > 1
    return checked.as_one_example("the inputs have different numbers of rows") if differ else checked


def parse_internal_batch_size(internal_batch_size: object) -> int | None:
    """Returns the number of rows that the caller allows in one chunk, or None.

    Raises ArgumentTypeError for all but integers and floats from 1 up, ArgumentError for integers below 1.
    """
    if internal_batch_size is None:
        return None
    if isinstance(internal_batch_size, float) and internal_batch_size >= 1:
        return int(internal_batch_size)  # Captum takes 2.5 and uses 2
    try:
        size = operator.index(internal_batch_size)  # type: ignore[arg-type]
    except TypeError:
        got = describe(internal_batch_size)
        raise ArgumentTypeError(f"internal_batch_size must be a positive integer or None; got {got}") from None
    if size < 1:
        raise ArgumentError(f"internal_batch_size must be at least 1; got {size}")
    return size


def warn_if_not_finite(inputs: Inputs) -> bool:
    """Returns whether an input or a baseline holds a NaN or an infinity, and warns once by name if so."""
    for name, tensors in ((inputs.name, inputs.x), ("baselines", inputs.baselines)):
        for index, tensor in enumerate(tensors):
            if tensor.is_meta or tensor.numel() == 0 or _all_finite(tensor):
                continue
            warn(f"{name}[{index}] holds NaN or infinite values; attributions that depend on them will be too")
            return True
    return False


def _all_finite(tensor: Tensor) -> bool:
    if tensor.is_complex():
        return bool(torch.isfinite(tensor).all())
    # One pass and no temporary the size of the tensor. A NaN anywhere makes minimum and maximum NaN.
    return all(map(math.isfinite, torch.stack(torch.aminmax(tensor)).tolist()))
