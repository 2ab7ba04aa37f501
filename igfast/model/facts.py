"""What is known of a model with inputs of one kind, and how it is found out."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from igfast.errors import IgfastError, InputError
from igfast.lean import compiled
from igfast.memory.recovery import free_memory, is_out_of_memory
from igfast.model.channels_last import ConvolutionWatch, in_channels_last
from igfast.model.forward import ForwardFunction
from igfast.model.independence import WORTH_A_CLOSER_LOOK, RowsDependError, distance, rounding
from igfast.model.state import Remembered, module_of, modules_behind
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
        gains_channels_last: whether it has convolutions that are faster on channels-last images, and the same outputs.
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
    """What facts are remembered by, beside the model; None where calls that differ could not be told apart.

    The function, shapes, layouts, dtypes and devices of the inputs, the arguments (of tensors the shape), and which
    modules are in training mode.
    """
    args = tuple(_key_of_argument(arg) for arg in evaluator.args)
    if kind is None or None in args:
        return None
    forward_func = evaluator.forward_func
    of_inputs = tuple((x.shape, x.stride(), x.dtype, x.device) for x in evaluator.inputs.x)
    training = tuple(part.training for module in modules_behind(forward_func) for part in module.modules())
    function = getattr(forward_func, "__func__", None)  # of a bound method
    return kind, type(evaluator), function, evaluator.inputs.joint, of_inputs, args, training


def _key_of_argument(arg: Any) -> Hashable:
    if isinstance(arg, Tensor):
        return "tensor", arg.shape, arg.dtype
    return (type(arg), arg) if isinstance(arg, (bool, int, float, str, type(None), torch.dtype)) else None


def discover(evaluator: ForwardFunction) -> tuple[Facts, Any]:
    """What the caller's own call shows, and its output; None in its place where it does not fit in memory.

    Raises:
        InputError: an argument says that rows belong together, and the model does not take it.
        OutputError, OutputTypeError: the output cannot be attributed.
    """
    why_whole = evaluator.why_whole_steps()
    is_compiled = compiled(evaluator.forward_func, module_of(evaluator.forward_func))
    watch = ConvolutionWatch()
    output, before = None, random_state(evaluator.inputs.device)
    try:
        with nullcontext() if is_compiled else watch:
            output = evaluator.own_output()
    except Exception as error:
        if why_whole and not is_out_of_memory(error) and not isinstance(error, IgfastError):
            raise InputError(f"{why_whole}, and forward_func does not take that: {error}") from error
        if not is_out_of_memory(error):
            raise
        free_memory(evaluator.inputs.device)
    finally:
        before.restore()  # so that random draws are those of a call that does without
    evaluator.explains_integers = False
    if output is None:
        return Facts(why_whole, gains_channels_last=watch.gains), None
    if why_whole:
        evaluator.n_entries(output)
        return Facts(why_whole), output
    if isinstance(output, Tensor):
        if _drops_one_row(evaluator, output):
            output = output.unsqueeze(0)
        evaluator.output_dim = output.dim()
    why_whole = evaluator.why_output_is_joint(output)
    gains = watch.gains and not why_whole and _takes_channels_last(evaluator, output)
    return Facts(why_whole, evaluator.output_dim, gains), output


def _takes_channels_last(evaluator: ForwardFunction, output: Any) -> bool:
    """Whether the caller's own call has the same output, up to rounding, with channels-last images.

    Compared here, where neither gradients nor accumulators take memory, and on the caller's own inputs.
    """
    images = tuple(map(in_channels_last, evaluator.inputs.x))
    if all(image is x for image, x in zip(images, evaluator.inputs.x, strict=True)):
        return False
    before = random_state(evaluator.inputs.device)
    try:
        other = evaluator.comparable(evaluator.output(images, evaluator.all_examples()))
    except Exception as error:  # a model may raise anything for another layout: `view` does
        if is_out_of_memory(error):
            free_memory(evaluator.inputs.device)
        return False
    finally:
        before.restore()
    own = evaluator.comparable(output)
    return distance(other, own) <= rounding((own, *images))


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


@dataclass
class Guard:
    """Sees to it that rows are stacked or split only where that leaves the outputs as they are.

    Each way is checked once, with the first chunk that goes it. Layouts were compared before (`discover`); a gradient
    in another layout counts as a way of its own only because a model may refuse it.

    Attributes:
        evaluator: the model; its inputs are not one joint example.
        agrees: the ways that were checked.
        pending: the ways of the present chunk that were not.
        unchecked: the ways for which there was no memory to compare.
    """

    evaluator: ForwardFunction
    agrees: set[str]
    pending: set[str] = field(default_factory=set)
    unchecked: set[str] = field(default_factory=set)

    def before(self, n_rows: int, channels_last: bool) -> None:
        """Before a chunk: checks that some examples alone have their outputs.

        Raises:
            RowsDependError: they have others.
        """
        batch = self.evaluator.inputs.batch
        ways = {STACKED} if n_rows > batch else {SPLIT} if n_rows < batch else set()
        self.pending = (ways | ({CHANNELS_LAST} if channels_last else set())) - self.agrees
        if SPLIT in self.pending:
            self._check_split(n_rows)
            self._found({SPLIT})
        self.evaluator.keeps_output = STACKED in self.pending

    def after(self, points: tuple[Tensor, ...]) -> None:
        """After the gradient of a chunk: checks that a step alone has the outputs that it had in the chunk.

        Raises:
            RowsDependError: it has others.
        """
        if STACKED in self.pending:
            self._check_step(points)
        self._found(self.pending.copy())
        self.evaluator.keeps_output, self.evaluator.kept_output = False, None

    def _found(self, ways: set[str]) -> None:
        self.agrees |= ways
        self.pending -= ways

    def _check_split(self, n_rows: int) -> None:
        evaluator = self.evaluator
        x, example = evaluator.inputs.x, evaluator.all_examples()

        def among_others() -> Tensor:  # the same examples in a batch of as many, the others replaced by the first
            index = torch.where(example < n_rows, example, 0)
            return evaluator.comparable(evaluator.output(tuple(p.index_select(0, index) for p in x), index))[:n_rows]

        before = random_state(evaluator.inputs.device)
        try:
            together = evaluator.comparable(evaluator.output(x, example))
        except Exception as error:
            before.restore()
            if is_out_of_memory(error):  # nothing to compare with: parts are all that fits
                self.unchecked.add(SPLIT)
                return
            raise
        try:
            apart = evaluator.comparable(evaluator.output(tuple(part[:n_rows] for part in x), example[:n_rows]))
            if not _same(together[:n_rows], apart, among_others, x):
                again = evaluator.comparable(evaluator.output(x, example))
                steady = distance(again, together) <= rounding((together, *x))
                raise RowsDependError(_DEPENDS if steady else _CHANGES)
        except Exception as error:
            if isinstance(error, (IgfastError, RowsDependError)) or is_out_of_memory(error):
                raise
            raise RowsDependError(f"forward_func does not take {n_rows} of the examples alone") from error
        finally:
            before.restore()

    def _check_step(self, points: tuple[Tensor, ...]) -> None:
        evaluator = self.evaluator
        n_rows, n_each = points[0].shape[0], min(points[0].shape[0], evaluator.inputs.batch)
        n_steps = n_rows // n_each
        # Neither the last step nor the middle one: what rows share may be a largest value, or the mean of the path.
        third = (n_steps - 1) // 3
        step = slice(third * n_each, (third + 1) * n_each)
        example = evaluator.all_examples()[:n_each]

        def alone(evaluate: Callable[..., Any]) -> Tensor:
            return evaluator.comparable(evaluate(tuple(point[step].clone() for point in points), example))

        def among_others() -> Tensor:  # the step repeated, in a chunk of as many rows
            index = torch.arange(n_rows, device=example.device) % n_each
            repeated = tuple(torch.empty_like(point).copy_(point[step].index_select(0, index)) for point in points)
            return evaluator.comparable(evaluator.output_with_graph(repeated, example[index]))[step]

        before, kept = random_state(evaluator.inputs.device), evaluator.kept_output
        try:
            wanted = alone(evaluator.output)
            allowed = rounding((wanted, *points))
            if distance(alone(evaluator.output), wanted) > allowed:
                raise RowsDependError(_CHANGES)
            if distance(kept[step], wanted) <= allowed:
                return
            if not _same(kept[step], alone(evaluator.output_with_graph), among_others, points):
                raise RowsDependError(_DEPENDS)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.unchecked.add(STACKED)
        finally:
            before.restore()


def _same(output: Any, alone: Any, among_others: Callable[[], Any], inputs: tuple[Tensor, ...]) -> bool:
    """Whether rows have the outputs of a step of their own, up to rounding.

    Kernels for another number of rows may round differently. Where outputs are close and not the same, the rows are put
    among others of as many: the kernels are those of `output` then, and what is left is what rows share.
    """
    allowed = rounding((alone, output, *inputs))
    apart = distance(output, alone)
    return apart <= allowed or (apart <= WORTH_A_CLOSER_LOOK and distance(among_others(), output) <= allowed)
