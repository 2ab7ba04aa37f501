"""Runs a language model on a prompt and its answer at once, and scores each token of the answer."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from igfast.errors import ArgumentError, OutputError, OutputTypeError
from igfast.llm import scores
from igfast.model.hooks import hooked
from igfast.model.independence import is_autocast, multiplies_in_tf32, rounds_to_tf32
from igfast.model.modules import is_igfasts
from igfast.request.inputs import describe


class Teacher(nn.Module):
    """A model that is given a prompt and all but the last token of an answer, and scores tokens of the answer.

    In a causal model the prediction of each token sees only those before it, so one forward pass scores them all.

    Args:
        model: a causal language model, or an encoder and a decoder; returns an object with `logits`.
        n_prompt: tokens of the prompt.
        answer: the answer's ids, (tokens,) int64.
        places: for each number of a row, the tokens of the answer that it is of.
        score: of one token.
        start: the id that a decoder begins with; None where the model says which.

    Attributes:
        score_name: the name of the score; None if it is a function of the caller's.
        seen: the log-probabilities of the answer's tokens, (tokens,) float64, of each forward pass; None to keep none.
        dtype: the coarsest dtype that the last of those passes computed in.
    """

    def __init__(
        self,
        model: nn.Module,
        n_prompt: int,
        answer: Tensor,
        places: Sequence[range],
        score: scores.Score = scores.log_prob,
        start: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.start = model, start
        self.training = getattr(model, "training", False)
        self.n_prompt, self.answer, self.places, self.score = n_prompt, answer, list(places), score
        self.prefix = answer  # what an encoder-decoder's decoder is given
        self.score_name: str | None = "log_prob"
        self.seen: list[Tensor] | None = None
        self.dtype = torch.float32
        inner = unwrapped(model)
        takes = inspect.signature(inner.forward).parameters
        self._options = {"use_cache": False} if _takes_use_cache(inner, takes) else {}
        self._keeps = next((name for name in ("logits_to_keep", "num_logits_to_keep") if name in takes), None)

    def forward(self, ids: Tensor) -> Tensor:
        """Returns the scores of each row, (rows, numbers)."""
        logits = self.logits(ids)
        answer = self.answer.to(logits.device)
        if self.seen is not None:
            self.seen.append(scores.log_probs(logits[:1].detach(), answer)[0].double())
        columns = [scores.joint(self.score, logits, answer, places) for places in self.places]
        for column in columns:
            if not isinstance(column, Tensor) or column.shape != logits.shape[:1]:
                raise OutputError(
                    f"attr_target must return one number for each row, ({len(logits)},); got {describe(column)}"
                )
        return torch.stack(columns, dim=1)

    def logits(self, ids: Tensor) -> Tensor:
        """Returns the logits that predict the answer's tokens, (rows, tokens, vocabulary), float32 or float64."""
        n_tokens = len(self.answer)
        logits = self._logits(ids, n_tokens)
        if self.seen is not None:
            self.dtype = self._coarsest(logits)
        return logits if logits.dtype is torch.float64 else logits.float()

    def ids(self, prompt: Tensor, prefix: Tensor) -> Tensor:
        """Returns what the model is given, (1, positions): the prompt, (1, tokens), and the answer before its end."""
        return torch.cat([prompt, prefix[None, : len(self.answer) - 1].to(prompt)], dim=1)

    def until(self, n_tokens: int) -> Teacher:
        """Returns the teacher of the answer's first tokens, which scores the last one of these."""
        last = [range(n_tokens - 1, n_tokens)]
        return type(self)(self.model, self.n_prompt, self.answer[:n_tokens], last, self.score, self.start)

    def without_end(self, ids: Tensor, n_tokens: int) -> Tensor:
        """Returns the part of `ids` that the teacher of the answer's first tokens is given."""
        return ids[:, : self.n_prompt + n_tokens - 1]

    def with_another_end(self, ids: Tensor, n_kept: int) -> tuple[Teacher, Tensor]:
        """Returns a teacher and ids, with other tokens after the first `n_kept` that the model sees of the answer."""
        start = self.n_prompt + n_kept
        return self, torch.cat([ids[:, :start], _others(ids[:, start:])], dim=1)

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Gives `seen`, which gets the log-probabilities of each forward pass until the block ends."""
        seen: list[Tensor] = []
        self.seen = seen
        try:
            yield seen
        finally:
            self.seen = None

    @property
    def kept_with(self) -> nn.Module:
        """The module that facts about the teacher are kept with."""
        return self.model

    @property
    def kind(self) -> Hashable:
        """What tells the facts about one teacher from those about another; None where nothing does."""
        if not isinstance(self.score_name, str):
            return None
        return type(self), self.score_name, self.n_prompt, len(self.answer), tuple(map(tuple, self.places))

    @property
    def n_positions_seen(self) -> list[int]:
        """For each number of a row, how many positions it may depend on."""
        return [self.n_prompt + places[-1] for places in self.places]

    def _logits(self, ids: Tensor, n_tokens: int) -> Tensor:
        head = _head_of(self.model)
        if head is not None and any(map(_is_attributed, head.modules())):
            return _of(self.model(ids, **self._options))[:, -n_tokens:]
        if self._keeps is not None:
            return _of(self.model(ids, **self._options, **{self._keeps: n_tokens}))[:, -n_tokens:]
        with _head_keeps(head, n_tokens):
            return _of(self.model(ids, **self._options))[:, -n_tokens:]

    def _in_tf32(self) -> bool:
        has_convolutions = any(isinstance(part, nn.Conv1d) for part in self.model.modules())
        return multiplies_in_tf32() or (has_convolutions and rounds_to_tf32())

    def _coarsest(self, logits: Tensor) -> torch.dtype:
        """Returns the coarsest dtype that a forward pass rounds to: models may convert their logits to float32."""
        dtypes = {one.dtype for one in self.model.parameters() if one.is_floating_point() and one.dtype.itemsize > 1}
        dtypes.add(logits.dtype)
        if is_autocast(logits.device.type):
            dtypes.add(torch.get_autocast_dtype(logits.device.type))
        if logits.is_cuda and torch.float32 in dtypes and self._in_tf32():
            dtypes.add(torch.float16)  # which has as many bits as TF32
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


class EncoderDecoderTeacher(Teacher):
    """The teacher of a model whose encoder takes the prompt and whose decoder takes the answer."""

    def ids(self, prompt: Tensor, prefix: Tensor) -> Tensor:  # noqa: ARG002
        """Returns the prompt: what the encoder is given."""
        return prompt

    def without_end(self, ids: Tensor, n_tokens: int) -> Tensor:  # noqa: ARG002
        """Returns the prompt."""
        return ids

    def with_another_end(self, ids: Tensor, n_kept: int) -> tuple[Teacher, Tensor]:
        """Returns a teacher of another answer after the first `n_kept` tokens, and the prompt."""
        other = EncoderDecoderTeacher(self.model, self.n_prompt, self.answer, self.places, self.score, self.start)
        other.prefix = torch.cat([self.prefix[:n_kept], _others(self.prefix[n_kept:])])
        return other, ids

    @property
    def n_positions_seen(self) -> list[int]:
        """All of the prompt, for every number."""
        return [self.n_prompt] * len(self.places)

    def _logits(self, ids: Tensor, n_tokens: int) -> Tensor:
        start = _decoder_start(unwrapped(self.model)) if self.start is None else self.start
        first = torch.full_like(self.answer[:1], start)
        given = torch.cat([first, self.prefix[: n_tokens - 1]]).to(ids)
        return _of(self.model(ids, decoder_input_ids=given.expand(len(ids), -1), **self._options))


def _decoder_start(model: nn.Module) -> int:
    """Returns the id that `generate` begins with, or that the model's configuration names."""
    configs = [getattr(model, name, None) for name in ("generation_config", "config")]
    for name in ("decoder_start_token_id", "bos_token_id"):
        for config in configs:
            found = getattr(config, name, None)
            if found is not None:
                return int(found[0] if isinstance(found, (list, tuple)) else found)
    raise ArgumentError("the model must say which token its decoder begins with: set config.decoder_start_token_id")


def teacher_of(model: nn.Module) -> type[Teacher]:
    """Returns the kind of teacher for a model."""
    config = getattr(unwrapped(model), "config", None)
    return EncoderDecoderTeacher if getattr(config, "is_encoder_decoder", False) else Teacher


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the model inside of wrappers that pass arguments on: compiled modules, data parallelism, adapters."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if inner is None and hasattr(model, "peft_config") and callable(getattr(model, "get_base_model", None)):
            inner = model.get_base_model()  # type: ignore[operator]
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


def _takes_use_cache(model: nn.Module, takes: Mapping[str, inspect.Parameter]) -> bool:
    """Returns whether a model can be told to keep no keys and values, by name or among other keyword arguments."""
    if "use_cache" in takes:
        return True
    is_open = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes.values())
    config = getattr(model, "config", None)
    has_cache = any(hasattr(one, "use_cache") for one in (config, getattr(config, "text_config", None)))
    return is_open and has_cache and type(model).__module__.startswith("transformers.")


def _of(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() not in (3, 4):
        raise OutputTypeError(
            "the language model must return an object with logits, (batch, positions, vocabulary); got "
            f"{describe(output) if logits is None else f'logits that are {describe(logits)}'}"
        )
    return logits[:, 0] if logits.dim() == 4 else logits  # models with several heads give the first one's first


def _others(ids: Tensor) -> Tensor:
    """Returns an id of the vocabulary in the place of each id, and not the same one."""
    return torch.where(ids == 0, 1, 0)


def _is_attributed(part: nn.Module) -> bool:
    """Returns whether a module has a hook of igfast's, as the layer has that tokens are attributed at."""
    return any(map(is_igfasts, (*part._forward_hooks.values(), *part._forward_pre_hooks.values())))


def _head_of(model: nn.Module) -> nn.Module | None:
    """Returns the layer that computes logits; None where the model does not name it."""
    find: Callable[[], Any] | None = getattr(unwrapped(model), "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head if isinstance(head, nn.Module) else None


@contextmanager
def _head_keeps(head: nn.Module | None, n_positions: int) -> Iterator[None]:
    """Lets the layer that computes logits see the last positions only, in this thread, during the block."""
    if head is None:
        yield
        return
    thread = threading.get_ident()

    def last(_: nn.Module, args: tuple[Any, ...]) -> Any:
        if threading.get_ident() != thread or not args or not isinstance(args[0], Tensor) or args[0].dim() != 3:
            return None
        return (args[0][:, -n_positions:], *args[1:])

    with hooked([head], [last], before=True):
        yield
