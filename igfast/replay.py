"""Chunks as CUDA graphs: their forward and backward passes recorded once, and replayed with other rows.

A model of many short kernels leaves a GPU waiting for Python to launch the next one. Recorded, all of them are launched
by one call. A recording fails if the model asks the GPU for anything on the way (`tensor.item()`, say), and PyTorch
does not come out of one that failed as it went in: its allocator and its random generators still take themselves to be
recording. So a chunk is watched for such questions before one is recorded, and the first replay is compared with an
ordinary evaluation, of other rows than those recorded.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from igfast.errors import GraphError
from igfast.memory import is_out_of_memory

CudaGraph = Literal["auto", True, False]
Rows = tuple[Tensor, Tensor]
"""The example and the alpha of each row of a chunk."""
Result = tuple[tuple[Tensor, ...], Tensor | None]
"""Gradients and values of a chunk's rows: see `igfast.engine.Evaluator`."""

FEWEST_LEFT = 8
"""Chunks to come for "auto" to record one: watching, recording and comparing take about as long as three."""

_IDLE_CHUNKS = 2  # in a row, after which the GPU is taken to wait for Python
_FEWEST_REQUIRED = 2  # chunks after the recorded one: to compare, and to replay
_ASKED = "called a synchronizing CUDA operation"  # how PyTorch's warnings say it
_WATCHING = "Synchronization debug mode is a prototype"  # what it says about those

_one_graph = threading.Lock()
"""Held from before a recording until its graph is gone. PyTorch's watch, and that nobody may wait for a device
meanwhile, hold for the process; and graphs share scratch memory of libraries, which goes with the first of them."""


class Recorder(Protocol):
    """What records graphs: a GPU, or what stands in for one in tests."""

    def is_idle(self) -> bool:
        """Whether it has done all that it was asked to."""

    def watched(self) -> AbstractContextManager[list[str]]:
        """Within, where the process waits for it is noted in the list."""

    def record(self, evaluate: Callable[[Tensor, Tensor], Result], rows: Rows) -> Callable[[Tensor, Tensor], Result]:
        """Returns what replays `evaluate`, which need not run now, with as many other rows.

        A replay overwrites the result of the one before.
        """


@dataclass
class Replay:
    """The graphs of one call, of which there is one at a time.

    Attributes:
        recorder: records them; None for no graphs.
        required: record at the first chance, and raise GraphError where that fails.
        off_because: why nothing is recorded any more, or from the start; empty while it may be.
        n_replayed: how many chunks were replayed.
    """

    recorder: Recorder | None = None
    required: bool = False
    off_because: str = ""
    n_replayed: int = 0
    _kind: Hashable = None
    _graph: Callable[[Tensor, Tensor], Result] | None = field(default=None, repr=False)
    _has_lock: bool = False
    _is_held_up: bool = False  # by the graph of another call
    _is_compared: bool = False
    _n_seen: int = 0  # chunks of this kind
    _n_idle: int = 0  # of them in a row

    def __call__(
        self,
        kind: Hashable,
        rows: Rows,
        evaluate: Callable[[], Result],
        recorded: Callable[[Tensor, Tensor], Result],
        n_left: int,
    ) -> Result:
        """Evaluates a chunk, by a graph if there is one that fits; what that returns lasts until the next chunk.

        Args:
            kind: what chunks have in common that one graph serves.
            rows: the chunk's.
            evaluate: evaluates them as without graphs.
            recorded: evaluates other rows, to be recorded.
            n_left: how many chunks of this kind come next, up to `FEWEST_LEFT`; 0 where this one may not be recorded.

        Raises:
            GraphError: graphs are required, and the model cannot be recorded.
        """
        if self.recorder is None or self.off_because:
            return evaluate()
        if kind != self._kind:
            self.close()
            self._kind, self._is_compared, self._n_seen, self._n_idle = kind, False, 0, 0
        self._n_seen += 1
        if self._graph is not None and self._is_compared:
            self.n_replayed += 1
            return self._graph(*rows)
        if self._graph is not None:
            return self._compared(rows, evaluate)
        if not self._is_worth_it(n_left) or not self._lock():
            result = evaluate()
            self._n_idle = self._n_idle + 1 if self.recorder.is_idle() else 0
            return result
        try:
            with self.recorder.watched() as questions:
                result = evaluate()
        except BaseException:
            self.close()
            raise
        if questions:
            self._give_up(f"the model waits for the GPU ({questions[0]})")
        else:
            self._record(self.recorder, recorded, rows)
        return result

    def _lock(self) -> bool:
        """Whether this call may record a graph now."""
        self._has_lock = _one_graph.acquire(blocking=False)
        self._is_held_up = not self._has_lock
        return self._has_lock

    def close(self) -> None:
        """Drops the graph, so that other threads may record theirs; to be called after the last chunk."""
        self._graph = None
        if self._has_lock:
            self._has_lock = False
            _one_graph.release()

    def __str__(self) -> str:
        """As the report has it."""
        says = [f"{self.n_replayed} chunks replayed"] if self.n_replayed or self.required else []
        off_because = self.off_because or ("another call has a graph" if self._is_held_up else "")
        return "; ".join(says + ([f"off: {off_because}"] if off_because else []))

    def _is_worth_it(self, n_left: int) -> bool:
        """Whether the next chunk is recorded; the first of its kind may do what the others need not do again."""
        if self.required:
            return n_left >= _FEWEST_REQUIRED and self._n_seen > 1
        return n_left >= FEWEST_LEFT and self._n_idle >= _IDLE_CHUNKS

    def _compared(self, rows: Rows, evaluate: Callable[[], Result]) -> Result:
        """Evaluates a chunk both ways."""
        fits = True
        try:
            result = evaluate()
        except Exception as error:  # a model or a library may raise anything when memory runs out
            if not is_out_of_memory(error):
                raise
            fits = False
        if not fits:  # out of the handler, whose traceback holds what the failed chunk held
            self._give_up("there is no memory for a graph beside a chunk")
            return evaluate()
        if self._graph is not None and not _agree(result, self._graph(*rows)):
            self._give_up("the graph gives other gradients than the model")
        self._is_compared = True
        return result

    def _record(self, recorder: Recorder, recorded: Callable[[Tensor, Tensor], Result], rows: Rows) -> None:
        try:
            self._graph = recorder.record(recorded, rows)
        except Exception as error:  # whatever a model raises that cannot be recorded, and memory that runs out
            said = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
            kind = "out of memory while recording" if is_out_of_memory(error) else "the model cannot be recorded"
            self._give_up(f"{kind} ({said})")

    def _give_up(self, because: str) -> None:
        self.off_because = because
        self.close()
        if self.required:
            raise GraphError(f"cuda_graph=True, but {because}")


def _agree(result: Result, replayed: Result) -> bool:
    """Whether two evaluations are the same in each row up to rounding: in half of the digits of the coarsest tensor."""
    pairs = [
        (one, other)
        for one, other in zip((*result[0], result[1]), (*replayed[0], replayed[1]), strict=True)
        if one is not None and other is not None
    ]
    rounding = max(torch.finfo(one.dtype).eps for one, _ in pairs)
    for one, other in pairs:
        finite = one.isfinite()
        apart, size = (
            of.abs().double().square().reshape(len(one), -1).sum(1)
            for of in (torch.where(finite, one - other, 0), torch.where(finite, one, 0))
        )
        if not bool((finite == other.isfinite()).all() & (apart <= rounding * size).all()):
            return False
    return True


@dataclass(frozen=True)
class CudaRecorder:
    """Records CUDA graphs.

    Attributes:
        device: where the path points are.
    """

    device: torch.device

    def is_idle(self) -> bool:
        """Whether the current stream has nothing left to do."""
        return torch.cuda.current_stream(self.device).query()

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Notes operations that wait for the GPU, by PyTorch's warnings about them, and passes on all others."""
        questions: list[str] = []
        caught: list[tuple[Any, Any, str, int]] = []
        watching = threading.get_ident()

        def note(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
            """In the place of `warnings.showwarning`."""
            if _ASKED not in str(message):
                caught.append((message, category, filename, lineno))
            elif threading.get_ident() == watching or _is_pytorchs_thread():
                questions.append(f"{filename}:{lineno}")

        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note  # type: ignore[assignment]
            if before == 0:  # else the user watches already
                torch.cuda.set_sync_debug_mode("warn")
            try:
                yield questions
            finally:
                torch.cuda.set_sync_debug_mode(before)
        for message, *where in caught:
            if _WATCHING not in str(message):
                warnings.warn_explicit(message, *where)

    def record(self, evaluate: Callable[[Tensor, Tensor], Result], rows: Rows) -> Callable[[Tensor, Tensor], Result]:
        """Records on a stream for that; a graph may be replayed on any."""
        example, alpha = (of.clone() for of in rows)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), _stream_restored(self.device), _casts_not_kept():
            stream = _recording_stream(self.device)
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = evaluate(example, alpha)

        def replay(other_example: Tensor, other_alpha: Tensor) -> Result:
            """With rows that are copied to where the recorded ones were."""
            example.copy_(other_example)
            alpha.copy_(other_alpha)
            with torch.cuda.device(self.device):
                graph.replay()
            return result

        return replay


def _is_pytorchs_thread() -> bool:
    """Whether this thread was not started by Python, as those of autograd: hooks of a model run there, too."""
    return isinstance(threading.current_thread(), threading._DummyThread)


@functools.cache
def _recording_stream(device: torch.device) -> Any:
    """One for all recordings of a device: libraries keep scratch memory for each stream that they have seen."""
    return torch.cuda.Stream(device)


def recorder_for(device: torch.device) -> Recorder | None:
    """What records graphs on a device, if anything does."""
    return CudaRecorder(device) if device.type == "cuda" else None


@contextmanager
def _stream_restored(device: torch.device) -> Iterator[None]:
    """Puts back the current stream, which a recording that fails does not do."""
    before: Any = torch.cuda.current_stream(device)
    try:
        yield
    finally:
        torch.cuda.set_stream(before)


@contextmanager
def _casts_not_kept() -> Iterator[None]:
    """Keeps autocast from keeping weights whose cast was recorded and not computed."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
