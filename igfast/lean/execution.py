"""Lean execution of one attribution: whether it is on, the fallback to plain autograd, and further memory savings."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import FunctionType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from igfast.errors import LeanError, warn
from igfast.interrupts import must_pass
from igfast.lean.lending import acting
from igfast.lean.recompute import NotRecomputableError, OfLeaves, Tape, repeated_blocks
from igfast.lean.rerun import rerun, rerun_modules
from igfast.memory.offload import Offload
from igfast.ops._load import kernels_loaded
from igfast.rng import random_state

_Result = TypeVar("_Result")
_CALLED_BY_FUNCTIONAL = ("batch_norm", "max_pool1d", "max_pool2d", "max_pool3d", "relu", "relu_")
"""What functions of torch.nn.functional call by these names of torch, and lean operators stand for."""
# Modes that lean operators need not pass through: igfast's own, and the default device, for new tensors alone.
_HARMLESS_MODES = {"LeanMode", "ConvolutionWatch", "NoFastPath", "AllocationWatch", "DeviceContext"}


class Execution:
    """Runs the forward passes of one attribution: leanly or plainly, and with further measures that save memory.

    Args:
        off_because: why lean execution is off from the start; empty if it is on.
        required: raise LeanError instead of falling back to plain autograd.
        module: the module behind the forward function; its repeated blocks can be recomputed.
        hooked: modules whose hooks a recomputation would miss.
        device: the device of the inputs; None means the CPU.
        recomputes: whether repeated blocks may be recomputed.
        weights: returns the weights of all modules behind the forward function, which stay where they are.

    Attributes:
        recomputes: False from the start, or once a block did something else when it ran again.
        off_because: why lean execution is off; empty while it is on.
        failed_because: the error that only lean execution raised; empty if there was none.
    """

    def __init__(
        self,
        off_because: str,
        *,
        required: bool = False,
        module: nn.Module | None = None,
        hooked: Sequence[nn.Module] = (),
        device: torch.device | None = None,
        recomputes: bool = True,
        weights: Callable[[], Iterator[Tensor]] = lambda: iter(()),
    ) -> None:
        if off_because and required:
            raise LeanError(f"lean=True, but lean execution is not possible: {off_because}")
        self.off_because = off_because
        self.failed_because = ""
        self._required = required
        self._refusals: list[str] = []
        self._mode = None if off_because else self._new_mode()
        self._module = module
        self._hooked = hooked
        self._device = device or torch.device("cpu")
        self._weights = weights
        self._tape: Tape | None = None
        self.recomputes = recomputes
        self._tried_recomputing = False
        self._offloads = False
        self._rerun = [] if off_because else rerun_modules(module)

    @property
    def swapped(self) -> Mapping[str, int]:
        """How many calls of each PyTorch function were replaced by lean operators."""
        return Counter() if self._mode is None else self._mode.swapped

    @property
    def plain(self) -> Mapping[tuple[str, str], int]:
        """How many calls of functions in the table were not replaced, by function and reason."""
        return Counter() if self._mode is None else self._mode.plain

    def active(self) -> AbstractContextManager[Any]:
        """Returns the context manager to enter around the forward pass."""
        if self._tape is None and not self._offloads:
            return self._leanly(self._mode)
        return self._saving(self._mode, self._tape)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leaves the calls inside the block out of `swapped` and `plain`."""
        counters = [] if self._mode is None else [self._mode.swapped, self._mode.plain]
        before = [counter.copy() for counter in counters]
        try:
            yield
        finally:
            for counter, counts in zip(counters, before, strict=True):
                counter.clear()
                counter.update(counts)

    def save_more(self, device: torch.device) -> str:
        """Takes the next measure that trades time for memory, and describes it; returns "" if none is left."""
        if not self._tried_recomputing:
            self._tried_recomputing = True
            blocks = [b for b in repeated_blocks(self._module) if not set(self._hooked) & set(b.modules())]
            if blocks and self.recomputes:
                self._tape = Tape(blocks, self._again)
                return f"{len(blocks)} repeated blocks of the model computed again in the backward pass"
        if not self._offloads and device.type == "cuda":
            self._offloads = True
            return "what the backward pass needs kept in main memory"
        return ""

    def gradients(self, values: list[Tensor], leaves: tuple[Tensor, ...]) -> Iterator[OfLeaves]:
        """Yields the gradients of the sum of each of the last forward pass's values, None where there is none.

        Empties `values`, so that a graph lives no longer than it is needed.
        """
        if self._tape is not None:
            yield from self._tape.gradients(values, leaves)
            return
        while values:
            # Of the sum, because grad_outputs= (a one for each row) imports 45 MB of symbolic shapes.
            total = values.pop(0).sum()
            yield torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=bool(values))

    def _leanly(self, mode: Any) -> AbstractContextManager[Any]:
        if self.off_because or mode is None:
            return nullcontext()
        return self._with_reruns(mode) if self._rerun else mode

    @contextmanager
    def _with_reruns(self, mode: Any) -> Iterator[None]:
        with mode, acting(dict.fromkeys(self._rerun, functools.partial(rerun, mode))):
            yield

    @contextmanager
    def _saving(self, mode: Any, tape: Tape | None) -> Iterator[None]:
        with ExitStack() as stack:
            if self._offloads:
                offload = Offload(self._weights())
                stack.enter_context(offload)
                if mode is not None:
                    mode.ignored = offload.pack_hook
            stack.enter_context(self._leanly(mode))
            if tape is not None:
                stack.enter_context(tape.recording())
            yield

    def _again(self) -> AbstractContextManager[Any]:
        """Returns the context in which a block runs again: it counts nothing."""
        return self._saving(None if self.off_because else self._new_mode(), None)

    def _new_mode(self) -> Any:
        from igfast.lean.mode import LeanMode  # the import needs the compiled operators, which why_not_lean loads

        return LeanMode(self._refusals)

    def attempt(self, evaluate: Callable[[], _Result]) -> _Result:
        """Evaluates a chunk, and falls back to plain autograd from then on if only lean execution raises.

        Raises:
            LeanError: only lean execution raised, and lean execution is required.
        """
        if self._tape is not None:
            evaluate = functools.partial(self._evaluate_recomputing, evaluate, self._tape)
        if self.off_because:
            return evaluate()
        before = random_state(self._device)
        try:
            result = evaluate()
            if not self._refusals:
                return result
            raise NotImplementedError(self._refusals[0])  # the model caught it
        except Exception as error:  # a model may raise any type
            if must_pass(error):
                raise
            failure = error.with_traceback(None)  # the traceback's frames keep activations alive
        before.restore()
        because = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
        self.off_because = because
        self._refusals.clear()
        try:
            result = evaluate()
        except BaseException:
            self.off_because = ""  # plain autograd fails too
            raise
        self.failed_because = because
        if self._required:
            raise LeanError(f"lean=True, but the model does not take lean execution: {because}") from failure
        warn(
            f"lean execution does not fit this model ({because}), so it runs plainly, which takes more memory. "
            "Pass lean=False to IntegratedGradients if you know that beforehand"
        )
        return result

    def _evaluate_recomputing(self, evaluate: Callable[[], _Result], tape: Tape) -> _Result:
        """Evaluates a chunk, and never recomputes again if a block's recomputation differs from its forward pass.

        Raises MemoryError then, unless later measures were taken too.
        """
        before = random_state(self._device)
        try:
            return evaluate()
        except NotRecomputableError as error:
            self._tape, self.recomputes = None, False
            why = str(error)  # the error itself would keep activations alive
        finally:
            tape.forget()  # a pass that failed may have left blocks' tensors there
        if not self._offloads:
            raise MemoryError(f"the model's repeated blocks cannot be computed again: {why}")
        before.restore()
        return evaluate()


def why_no_modes() -> str:
    """Returns why calls under a TorchFunctionMode would give other numbers; empty if they would not.

    Under a mode, functions of torch.nn.functional call themselves again by their name there. What was put in the place
    of one, around the function itself, is then called twice.
    """
    for name, function in vars(F).items():
        origin = function.__globals__.get("__name__", "") if type(function) is FunctionType else "torch"
        if origin.split(".")[0] != "torch" or type(function) is functools.partial:
            return f"torch.nn.functional.{name} was replaced"
    return ""


def why_not_lean() -> str:
    """Returns why lean execution cannot be used; empty if it can."""
    if not kernels_loaded():
        return "igfast's compiled operators are not built"
    if why := why_no_modes():
        return why
    for name in _CALLED_BY_FUNCTIONAL:
        if getattr(torch, name) is not getattr(torch._C._VariableFunctions, name):
            return f"torch.{name} was replaced"
    # Lean operators would not pass through modes.
    if any(type(mode).__name__ not in _HARMLESS_MODES for mode in _get_current_function_mode_stack()):
        return "a TorchFunctionMode is active"
    if any(type(mode).__name__ not in _HARMLESS_MODES for mode in _get_current_dispatch_mode_stack()):
        return "a TorchDispatchMode is active"
    return ""
