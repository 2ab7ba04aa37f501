"""Finds out, for a model and inputs of one kind, whether rows are independent and whether channels-last is faster."""

from __future__ import annotations

import sys
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
from igfast.model.independence import WORTH_A_CLOSER_LOOK, RowsDependError, distance, is_autocast, rounding
from igfast.model.state import Remembered, module_of, modules_behind, number_of
from igfast.rng import random_state

UNKNOWN = sys.maxsize
_SAME_KERNELS = 1e-2  # of the rounding that is allowed between kernels: between two calls that are alike
STACKED, SPLIT, MIXED, CHANNELS_LAST = "stacked", "split", "mixed", "channels-last"
_DEPENDS = "the output of forward_func for one example depends on the others in its batch"
_CHANGES = "the output of forward_func changes from call to call (dropout, or a state that it keeps)"


@dataclass(frozen=True)
class Facts:
    """Facts about a model with inputs of one kind.

    Rows belong together where the output of one example depends on the others in its batch.

    Attributes:
        why_whole: why rows belong together; empty while rows are taken to be independent.
        output_dim: dimensions of an output of several rows; None if unknown.
        gains_channels_last: whether channels-last images make convolutions faster and leave the outputs as they are.
        agrees: ways (`STACKED`, `SPLIT`, `MIXED`, `CHANNELS_LAST`) in which rows had the outputs that they have alone.
        not_lean: why the model does not take lean execution; empty unless that was found out.
        most_rows: rows of a chunk that fitted after a larger chunk did not; None if no chunk was too large.
        n_savings: number of measures against lack of memory that were taken at one row.
        recomputes: whether repeated blocks may be recomputed: False once one did something else when it ran again.
        plain_bytes: what plain autograd keeps for the caller's own call; None if that was not asked.
    """

    why_whole: str = ""
    output_dim: int | None = None
    gains_channels_last: bool = False
    agrees: frozenset[str] = frozenset()
    not_lean: str = ""
    most_rows: int | None = None
    n_savings: int = 0
    recomputes: bool = True
    plain_bytes: int | None = None


remembered: Remembered[Facts] = Remembered()


def key_of(evaluator: ForwardFunction, kind: Hashable) -> Hashable:
    """Returns the key of a model's facts; None where the key could not tell different calls apart.

    The key has the function, the modules that it is seen to use, and the shapes, layouts, dtypes and devices of the
    inputs. Arguments (of tensors the shape and dtype), training modes, autocast and whether weights require gradients
    are in the key too.
    """
    args = tuple(_key_of_argument(arg) for arg in evaluator.args)
    if kind is None or None in args:
        return None
    forward_func = evaluator.forward_func
    of_inputs = tuple((x.shape, x.stride(), x.dtype, x.device) for x in evaluator.inputs.x)
    modules = modules_behind(forward_func)
    numbers = tuple(map(number_of, modules))
    training = tuple(part.training for module in modules for part in module.modules())
    differentiates = any(weight.requires_grad for module in modules for weight in module.parameters())
    autocast = is_autocast(evaluator.inputs.device.type)
    function = getattr(forward_func, "__func__", None)  # bound methods have one
    of_model = function, numbers, training, differentiates
    return kind, type(evaluator), of_model, evaluator.inputs.joint, of_inputs, args, autocast


def _key_of_argument(arg: Any) -> Hashable:
    if isinstance(arg, Tensor):
        return "tensor", arg.shape, arg.dtype
    return (type(arg), arg) if isinstance(arg, (bool, int, float, str, type(None), torch.dtype)) else None


def discover(evaluator: ForwardFunction) -> tuple[Facts, Any]:
    """Runs the caller's own call; returns its facts and its output, which is None if memory ran out.

    Raises:
        InputError: an argument says that rows belong together, and the model does not take the argument.
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
        before.restore()  # so that random draws are those of a call without this evaluation
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


def plain_bytes(evaluator: ForwardFunction, limit: int) -> int:
    """Returns the bytes that plain autograd keeps for the caller's own call besides weights.

    Returns `UNKNOWN` if these are more than `limit`, or if the call fails under hooks on saved tensors. The evaluator
    must not be in lean execution.
    """
    weights = {_storage_of(weight) for part in modules_behind(evaluator.forward_func) for weight in part.parameters()}
    kept: dict[object, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = _storage_of(tensor)
        if storage is None or storage not in weights:
            kept[storage or object()] = tensor.nbytes if storage is None else tensor.untyped_storage().nbytes()
            if sum(kept.values()) > limit:
                raise MemoryError("more than that")
        return tensor.detach()  # the tensor itself would be held by its own graph

    before = random_state(evaluator.inputs.device)
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            evaluator.output_with_graph(evaluator.inputs.x, evaluator.all_examples())
    except Exception:  # a model may raise anything, also where hooks are in place
        return UNKNOWN
    finally:
        before.restore()
    return sum(kept.values())


def _storage_of(tensor: Tensor) -> int | None:
    """Returns the address of a tensor's memory; None for tensors without, such as lazy weights and some subclasses."""
    try:
        return tensor.untyped_storage().data_ptr()
    except Exception:  # subclasses raise what they like
        return None


def _takes_channels_last(evaluator: ForwardFunction, output: Any) -> bool:
    """Returns whether channels-last images give the caller's own call the same output, up to rounding.

    Runs on the caller's own inputs, before gradients or accumulators take memory.
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
    # Kernels for another layout may round float32 to 10 bits in an order of their own.
    return distance(other, own) <= max(rounding((own, *images)), 5e-2 if own.is_cuda and rounds_to_tf32() else 0.0)


def rounds_to_tf32() -> bool:
    """Returns whether cuDNN may compute float32 convolutions in TF32, whichever of PyTorch's settings says so."""
    backends: Any = torch.backends
    return _is_tf32(backends.cudnn.conv, backends.cudnn, backends)


def multiplies_in_tf32() -> bool:
    """Returns whether cuBLAS may compute float32 matrix products in TF32, whichever of PyTorch's settings says so."""
    backends: Any = torch.backends
    return _is_tf32(backends.cuda.matmul, backends)


def _is_tf32(*settings: Any) -> bool:
    """Returns whether the first setting that was made says so; `allow_tf32` raises where a user made another one."""
    levels = (getattr(one, "fp32_precision", "none") for one in settings)
    return next((level for level in levels if level != "none"), "ieee") == "tf32"


def _drops_one_row(evaluator: ForwardFunction, output: Tensor) -> bool:
    """Returns whether the output of one example lacks the dimension of examples, as after `squeeze()`."""
    if evaluator.inputs.batch > 1 or (output.dim() > 0 and output.shape[0] == 1):
        return False
    twice = tuple(x.expand(2, *x.shape[1:]).contiguous() for x in evaluator.inputs.x)
    before = random_state(evaluator.inputs.device)
    try:
        of_two = evaluator.output(twice, torch.zeros(2, dtype=torch.int64, device=evaluator.inputs.device))
    except Exception:  # a model may raise anything for two rows
        return False
    finally:
        before.restore()
    return isinstance(of_two, Tensor) and of_two.dim() == output.dim() + 1 and of_two.shape[0] == 2


@dataclass
class Guard:
    """Ensures that rows are stacked or split only where that leaves the outputs as they are.

    Each way is checked once, with the first chunk of its kind. Layouts were compared before (`discover`). Gradients in
    another layout are a way of their own only because a model may refuse that.

    Attributes:
        evaluator: the model; its inputs are not one joint example.
        own: the caller's own call: steps are of its examples. The evaluator itself, or that with noisy copies of them.
        in_steps: whether chunks have the examples in the caller's order, step after step.
        agrees: the ways that were checked.
        pending: the ways of the present chunk that are not checked yet.
        unchecked: the ways for which there was no memory to compare.
    """

    evaluator: ForwardFunction
    own: ForwardFunction
    in_steps: bool
    agrees: set[str]
    pending: set[str] = field(default_factory=set)
    unchecked: set[str] = field(default_factory=set)

    def before(self, n_rows: int, channels_last: bool) -> None:
        """Checks, before a chunk, that a part of the examples keeps its outputs; raises RowsDependError otherwise."""
        batch = self.own.inputs.batch
        ways = {STACKED} if n_rows > batch else {SPLIT} if n_rows < batch else set()
        if not self.in_steps:
            ways = {MIXED} if max(n_rows, batch) > 1 else set()
        elif n_rows == self.evaluator.inputs.batch:  # all copies at once, as Captum has them
            ways = set()
        self.pending = (ways | ({CHANNELS_LAST} if channels_last else set())) - self.agrees
        if SPLIT in self.pending:
            self._check_split(n_rows)
            self._found({SPLIT})
        self.evaluator.keeps_output = bool({STACKED, MIXED} & self.pending)

    def after(self, points: tuple[Tensor, ...], example: Tensor) -> None:
        """Checks, after a chunk, that a step alone has its outputs in the chunk; raises RowsDependError otherwise."""
        if STACKED in self.pending:
            self._check_step(points)
        if MIXED in self.pending:
            self._check_row(points, example)
        self._found(self.pending.copy())
        self.evaluator.keeps_output, self.evaluator.kept_output = False, None

    def _found(self, ways: set[str]) -> None:
        self.agrees |= ways
        self.pending -= ways

    def _check_split(self, n_rows: int) -> None:
        evaluator = self.own
        x, example = evaluator.inputs.x, evaluator.all_examples()

        def among_others() -> Tensor:  # the same examples in a batch of the same size, with the first for the others
            index = torch.where(example < n_rows, example, 0)
            return evaluator.comparable(evaluator.output(tuple(p.index_select(0, index) for p in x), index))[:n_rows]

        before = random_state(evaluator.inputs.device)
        try:
            together = evaluator.comparable(evaluator.output(x, example))
        except Exception as error:
            before.restore()
            if is_out_of_memory(error):  # no output to compare with: only parts fit
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

    def _check_row(self, points: tuple[Tensor, ...], examples: Tensor) -> None:
        """Compares one row with the output that its example has in the caller's own batch."""
        evaluator = self.evaluator
        n_rows = points[0].shape[0]
        row = (n_rows - 1) // 3
        place = int(examples[row])

        def in_own_batch(evaluate: Callable[..., Any]) -> Tensor:
            batch = tuple(x.clone() for x in evaluator.inputs.x)
            for x, point in zip(batch, points, strict=True):
                x[place] = point[row]
            return evaluator.comparable(evaluate(batch, evaluator.all_examples()))[place : place + 1]

        def among_others() -> Tensor:  # the row repeated, in a chunk of the same size
            index = torch.full((n_rows,), row, device=examples.device)
            repeated = tuple(torch.empty_like(point).copy_(point.index_select(0, index)) for point in points)
            return evaluator.comparable(evaluator.output_with_graph(repeated, examples[index]))[row : row + 1]

        self._compare(slice(row, row + 1), in_own_batch, among_others, points, MIXED)

    def _check_step(self, points: tuple[Tensor, ...]) -> None:
        evaluator = self.own
        n_rows, n_each = points[0].shape[0], min(points[0].shape[0], evaluator.inputs.batch)
        n_steps = n_rows // n_each
        # Not the last or middle step: a largest value, or a mean, that the rows share may leave those unchanged.
        third = (n_steps - 1) // 3
        step = slice(third * n_each, (third + 1) * n_each)
        example = evaluator.all_examples()[:n_each]

        def alone(evaluate: Callable[..., Any]) -> Tensor:
            return evaluator.comparable(evaluate(tuple(point[step].clone() for point in points), example))

        def among_others() -> Tensor:  # the step repeated, in a chunk of the same size
            index = torch.arange(n_rows, device=example.device) % n_each
            repeated = tuple(torch.empty_like(point).copy_(point[step].index_select(0, index)) for point in points)
            return evaluator.comparable(evaluator.output_with_graph(repeated, example[index]))[step]

        self._compare(step, alone, among_others, points, STACKED)

    def _compare(
        self,
        rows: slice,
        alone: Callable[..., Tensor],
        among_others: Callable[[], Tensor],
        points: tuple[Tensor, ...],
        way: str,
    ) -> None:
        """Raises RowsDependError if rows of the kept output are not what they are alone."""
        evaluator, kept = self.own, self.evaluator.kept_output
        before = random_state(evaluator.inputs.device)
        try:
            wanted = alone(evaluator.output)
            allowed = rounding((wanted, *points))
            # The same kernels on the same numbers: on a CPU, a state that fades away shows below what rounding may be.
            steady = allowed * (_SAME_KERNELS if wanted.device.type == "cpu" else 1)
            if distance(alone(evaluator.output), wanted) > steady:
                raise RowsDependError(_CHANGES)
            if distance(kept[rows], wanted) <= allowed:
                return
            if not _same(kept[rows], alone(evaluator.output_with_graph), among_others, points):
                raise RowsDependError(_DEPENDS)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.unchecked.add(way)
        finally:
            before.restore()


def _same(output: Any, alone: Any, among_others: Callable[[], Any], inputs: tuple[Tensor, ...]) -> bool:
    """Returns whether rows have the outputs of a step of their own, up to rounding.

    Kernels for another number of rows may round differently. Close but unequal outputs are therefore compared again,
    among other rows in a batch of the same size. The kernels are then the same, and a difference shows dependence.
    """
    allowed = rounding((alone, output, *inputs))
    apart = distance(output, alone)
    return apart <= allowed or (apart <= WORTH_A_CLOSER_LOOK and distance(among_others(), output) <= allowed)
