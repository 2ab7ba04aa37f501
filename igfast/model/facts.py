"""What is known of a model with inputs of one kind, and how it is found out."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from igfast.errors import IgfastError, InputError
from igfast.lean import compiled
from igfast.memory import is_out_of_memory
from igfast.model.convolutions import ConvolutionWatch
from igfast.model.forward import ForwardFunction
from igfast.model.independence import WORTH_A_CLOSER_LOOK, RowsDependError, distance, rounding
from igfast.model.state import Remembered, module_of
from igfast.rng import random_state

STACKED, SPLIT, CHANNELS_LAST = "stacked", "split", "channels-last"
_DEPENDS = "the output of forward_func for one example depends on the others in its batch"
_CHANGES = "the output of forward_func changes from call to call (dropout, or a state that it keeps)"


@dataclass(frozen=True)
class Facts:
    """What is known of a model with inputs of one kind.

    Attributes:
        why_whole: why its rows belong together; empty while they are taken to be independent.
        output_dim: dimensions of an output of several rows; None where that is not known.
        gains_channels_last: whether it has convolutions that are faster on channels-last images.
        agrees: in which ways rows were seen to have the outputs of a step of their own.
        not_lean: why lean execution does not fit it; empty unless that was found out.
        most_rows: of a chunk that fitted after a larger one did not; None if none was too large.
        n_savings: how many measures against lack of memory were taken at one row.
    """

    why_whole: str = ""
    output_dim: int | None = None
    gains_channels_last: bool = False
    agrees: frozenset[str] = frozenset()
    not_lean: str = ""
    most_rows: int | None = None
    n_savings: int = 0


remembered: Remembered[Facts] = Remembered()


def key_of(evaluator: ForwardFunction, kind: Hashable) -> Hashable:
    """What facts are remembered by, beside the model: shapes, layouts, dtypes, devices, arguments, training mode."""
    module = module_of(evaluator.forward_func)
    of_inputs = tuple((x.shape, x.stride(), x.dtype, x.device) for x in evaluator.inputs.x)
    of_args = tuple(tuple(arg.shape) for arg in evaluator.args if isinstance(arg, Tensor))
    n_training = sum(part.training for part in module.modules()) if module is not None else 0
    return kind, type(evaluator), evaluator.inputs.joint, of_inputs, of_args, n_training


def discover(evaluator: ForwardFunction) -> tuple[Facts, Any]:
    """What the caller's own call shows, and its output; None in its place where it does not fit in memory.

    Raises:
        InputError: an argument says that rows belong together, and the model does not take it.
        OutputError, OutputTypeError: the output cannot be attributed.
    """
    why_whole = evaluator.why_whole_steps()
    is_compiled = compiled(evaluator.forward_func, module_of(evaluator.forward_func))
    watch = ConvolutionWatch()
    output = None
    try:
        with nullcontext() if is_compiled else watch:
            output = evaluator.own_output()
    except Exception as error:
        if why_whole and not is_out_of_memory(error) and not isinstance(error, IgfastError):
            raise InputError(f"{why_whole}, and forward_func does not take that: {error}") from error
        if not is_out_of_memory(error) or evaluator.inputs.batch == 1:
            raise
    if output is None:
        return Facts(why_whole), None
    gains = watch.gains or evaluator.gains_channels_last
    if why_whole:
        evaluator.n_entries(output)
        return Facts(why_whole, gains_channels_last=gains), output
    output_dim = output.dim() if isinstance(output, Tensor) else None
    if output_dim is None or not _drops_one_row(evaluator, output):
        return Facts(evaluator.why_output_is_joint(output), output_dim, gains), output
    return Facts("", output_dim + 1, gains), output.unsqueeze(0)


def _drops_one_row(evaluator: ForwardFunction, output: Tensor) -> bool:
    """Whether an output of one example lacks the dimension of examples, which one of two has: `squeeze()`."""
    if evaluator.inputs.batch > 1 or (output.dim() > 0 and output.shape[0] == 1):
        return False
    twice = tuple(x.expand(2, *x.shape[1:]).contiguous() for x in evaluator.inputs.x)
    try:
        of_two = evaluator.output(twice, torch.zeros(2, dtype=torch.int64, device=evaluator.inputs.device))
    except Exception:  # a model may raise anything for two rows
        return False
    return isinstance(of_two, Tensor) and of_two.dim() == output.dim() + 1 and of_two.shape[0] == 2


def check_split(evaluator: ForwardFunction, own_output: Any, n_rows: int) -> None:
    """Compares the outputs of the first examples alone with those that they have in the caller's own call.

    Args:
        evaluator: the model.
        own_output: of the caller's own call.
        n_rows: how many examples.

    Raises:
        RowsDependError: they differ, or some examples alone do not go through the model.
    """
    x, example = evaluator.inputs.x, evaluator.all_examples()
    together = evaluator.comparable(own_output)

    def apart() -> Tensor:
        """The outputs of the examples alone."""
        return evaluator.comparable(evaluator.output(tuple(part[:n_rows] for part in x), example[:n_rows]))

    def among_others() -> Tensor:
        """Their outputs in a batch of as many, the other examples replaced by the first."""
        index = torch.where(example < n_rows, example, 0)
        points = tuple(part.index_select(0, index) for part in x)
        return evaluator.comparable(evaluator.output(points, index))[:n_rows]

    before = random_state(evaluator.inputs.device)
    try:
        _compare(together[:n_rows], apart, among_others, lambda: evaluator.comparable(evaluator.own_output()), x)
    except Exception as error:
        if isinstance(error, (IgfastError, RowsDependError)) or is_out_of_memory(error):
            raise
        raise RowsDependError(f"forward_func does not take {n_rows} of the examples alone") from error
    finally:
        before.restore()


def check_step(evaluator: ForwardFunction, points: tuple[Tensor, ...], layouts: list[torch.memory_format]) -> None:
    """Compares the kept output of the last step of a chunk with that of the step alone, in the caller's layouts.

    Args:
        evaluator: the model, whose last gradient was that of the chunk.
        points: the chunk's path points.
        layouts: of the caller's inputs.

    Raises:
        RowsDependError: they differ.
    """
    n_rows = points[0].shape[0]
    step = slice(n_rows - min(n_rows, evaluator.inputs.batch), n_rows)
    example = evaluator.all_examples()[: step.stop - step.start]

    def alone() -> Tensor:
        """The outputs of the step alone."""
        own = (point[step].clone(memory_format=layout) for point, layout in zip(points, layouts, strict=True))
        return evaluator.comparable(evaluator.output(tuple(own), example))

    def among_others() -> Tensor:
        """Its outputs in a chunk of as many rows, all of which are the step's."""
        index = torch.arange(n_rows, device=example.device) % (step.stop - step.start)
        repeated = tuple(torch.empty_like(point).copy_(point[step].index_select(0, index)) for point in points)
        return evaluator.comparable(evaluator.output(repeated, index))[step]

    before = random_state(evaluator.inputs.device)
    kept = evaluator.kept_output
    try:
        wanted = alone()
        if distance(alone(), wanted) > rounding((wanted, *points)):
            raise RowsDependError(_CHANGES)
        _compare(None if kept is None else kept[step], lambda: wanted, among_others, lambda: kept, points)
    finally:
        before.restore()


def _compare(
    output: Any,
    alone: Callable[[], Any],
    among_others: Callable[[], Any],
    again: Callable[[], Any],
    inputs: tuple[Tensor, ...],
) -> None:
    """Raises RowsDependError unless rows have the outputs of a step of their own, up to rounding.

    Kernels for another number of rows may round differently. Where outputs are close and not the same, the rows are put
    among others of as many: the kernels are those of `output` then, and what is left is what rows share.
    """
    wanted = alone()
    allowed = rounding((wanted, output, *inputs))
    apart = distance(output, wanted)
    if apart <= allowed:
        return
    if apart > WORTH_A_CLOSER_LOOK or distance(among_others(), output) > allowed:
        whole = again()
        steady = not isinstance(whole, Tensor) or distance(again(), whole) <= allowed
        raise RowsDependError(_DEPENDS if steady else _CHANGES)
