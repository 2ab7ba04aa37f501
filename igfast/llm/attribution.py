"""Attributions of a language model's answer to the tokens of its prompt, with Captum's interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import captum.attr
import torch
from captum.attr import TextTokenInput
from captum.attr._core.llm_attr import DEFAULT_GEN_ARGS, _convert_ids_to_pretty_tokens
from torch import Tensor

from igfast.attr.stands_in import StandsIn
from igfast.errors import ArgumentError, ArgumentTypeError, ConvergenceWarning, OnePassError, warn
from igfast.llm import scores
from igfast.llm.answer import parse_answer, parse_foil, parse_spans
from igfast.llm.method import Asked, Method
from igfast.llm.question import Found, Question
from igfast.llm.result import LLMAttributionResult
from igfast.llm.runs import Paths
from igfast.llm.teacher import Teacher, teacher_of
from igfast.llm.token_baselines import parse_token_baseline
from igfast.model.modules import device_of
from igfast.request.inputs import describe
from igfast.rng import random_state

_LARGE_DELTA = 0.1  # of the change of what is attributed
_MOST_ADVISED = 1000  # steps


class LLMGradientAttribution(captum.attr.LLMGradientAttribution, metaclass=StandsIn):
    """Attributes the tokens that a language model answers to the tokens of its prompt.

    A drop-in for `captum.attr.LLMGradientAttribution`. Captum runs one attribution for each token of the answer. Here
    one forward pass for each path point scores all tokens, as a causal model predicts each from those before it. That
    gives the same numbers, up to rounding. Forward passes check it at run time: a model that is not causal, depends on
    the length of the sequence or draws at random is attributed token by token, with a warning.

    Args:
        attr_method: a `LayerIntegratedGradients` (igfast's or Captum's) or Captum's `LayerGradientXActivation` of a
            Hugging Face model at its embedding layer, or at a block. `LayerGradientShap` and subclasses with an
            `attribute` of their own are left to Captum's code.
        tokenizer: of Hugging Face's interface.
        attr_target: what is attributed of each token: "log_prob", "prob", "logit"; "logit_diff" and "prob_diff" against
            a foil; "entropy"; "kl", KL(p at the input || p on the path). Or a function of the logits
            (rows, tokens, vocabulary), the answer's ids (tokens,) and a token's place, which returns (rows,).

    Raises:
        ArgumentError, ArgumentTypeError: an argument has a value or a type that is not allowed.
        LayerError: `attr_method` has several layers.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3, from the layer on.
    """

    stands_for = captum.attr.LLMGradientAttribution

    def __init__(self, attr_method: Any, tokenizer: Any, *, attr_target: str | scores.Score = "log_prob") -> None:
        if not isinstance(attr_method, self.SUPPORTED_METHODS):
            names = ", ".join(method.__name__ for method in self.SUPPORTED_METHODS)
            raise ArgumentTypeError(f"attr_method must be one of {names}; got {describe(attr_method)}")
        if not isinstance(attr_method.forward_func, torch.nn.Module):
            raise ArgumentTypeError(
                f"attr_method must be of a language model, a torch.nn.Module; got {describe(attr_method.forward_func)}"
            )
        scores.check_name(attr_target)
        super().__init__(attr_method, tokenizer)
        self.device = device_of(self.model) or torch.device("cpu")
        self.attr_target = attr_target
        self._igfast_method = Method.of(attr_method)

    def attribute(
        self,
        inp: TextTokenInput,
        target: str | Tensor | None = None,
        gen_args: dict[str, Any] | None = None,
        *,
        per_token: bool = True,
        spans: Sequence[tuple[int, int]] | None = None,
        foil: str | Tensor | None = None,
        prefix: Literal["fixed", "path"] = "fixed",
        one_pass: Literal["auto", True, False] = "auto",
        return_convergence_delta: bool = False,
        return_report: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Attributes each token of an answer to the tokens of a prompt.

        Args:
            inp: the prompt.
            target: the answer: a text, its ids (tokens,), or None to let the model generate it.
            gen_args: for `model.generate`, if `target` is None.
            per_token: whether to attribute each token of the answer, with a backward pass for each and path point. If
                False, only their sum is attributed, with one backward pass, whatever the answer's length.
            spans: instead of tokens, pairs (start, stop) of places in the answer: one row for each, of the joint
                log-probability of its tokens.
            foil: for `attr_target` "logit_diff" and "prob_diff": another answer of as many tokens.
            prefix: whether the answer's tokens before the attributed one stay as they are ("fixed", as in Captum), or
                start at the baseline too ("path").
            one_pass: "auto" attributes all tokens in one pass where a check allows that, and token by token elsewhere.
                True raises an error instead, False attributes token by token.
            return_convergence_delta: also return `deltas` of the result.
            return_report: also return an `igfast.RunReport`.
            **kwargs: arguments of `attr_method`'s `attribute`: `n_steps`, `method`, `internal_batch_size`,
                `attribute_to_layer_input`, `tolerance`. As `baselines`, a tensor (1, n_itp_features) of 0 and 1: the
                baseline token of `inp` replaces the prompt's tokens at 0, and those at 1 are kept. Or another token for
                all: "pad", "bos", "eos", "unk", "mask", or a token of the vocabulary. Or "zero", or an
                `igfast.baselines.AtLayer`, for values of the layer.

        Returns:
            An `igfast.LLMAttributionResult`. With `return_convergence_delta` or `return_report`, a tuple with those.

        Raises:
            OnePassError: one pass would give other numbers, and `one_pass=True` or a joint probability is asked for
                (`attr_target="prob"`), which is no sum over tokens.
            LayerError: the layer does not have one entry for each token.
            ArgumentError, ArgumentTypeError, BaselineError: an argument has a value or type that is not allowed.
            And whatever `igfast.LayerIntegratedGradients.attribute` raises.

        Warns:
            ConvergenceWarning: the deltas exceed a tenth of the change of what is attributed.
        """
        if not isinstance(inp, TextTokenInput):
            raise ArgumentTypeError(f"inp must be a captum.attr.TextTokenInput; got {describe(inp)}")
        if one_pass not in ("auto", True, False) or prefix not in ("fixed", "path"):
            raise ArgumentError(
                f'one_pass must be "auto", True or False, and prefix "fixed" or "path"; got {one_pass!r} and {prefix!r}'
            )
        if self._igfast_method is None:
            ours = {
                "per_token=False": not per_token,
                "spans": spans is not None,
                "foil": foil is not None,
                'prefix="path"': prefix == "path",
                "one_pass=True": one_pass is True,
                "return_convergence_delta": return_convergence_delta,
                "return_report": return_report,
            }
            return self._igfast_left_to_captum(inp, target, gen_args, ours, kwargs)
        method = self._igfast_method
        asked = method.asked(kwargs, return_report)
        if prefix == "path" and (method.is_gradient or teacher_of(self.model) is not Teacher):
            raise ArgumentError(
                'prefix="path" is for methods with a path, of models that take the answer as their input'
            )
        if return_convergence_delta and method.is_gradient:
            raise ArgumentError("return_convergence_delta is for methods with a path; a gradient has no delta")
        answer = self._get_target_tokens(inp, target, gen_args)
        places = parse_spans(spans, per_token, len(answer))
        foil_ids = parse_foil(foil, answer, self.tokenizer)
        is_sum = self.attr_target != "prob" and sorted(t for row in places for t in row) == list(range(len(answer)))
        whole = [] if is_sum or places == [range(len(answer))] else [range(len(answer))]
        teacher = teacher_of(self.model)(
            self.model, inp.inp_tensor.shape[1], answer, places + whole, start=_start_of(gen_args)
        )
        question = Question(
            teacher,
            self._igfast_paths(teacher, inp, asked, prefix, warns=not method.is_gradient),
            self.attr_target,
            foil_ids,
        )
        found = self._igfast_found(method, question, asked, one_pass)
        result = self._igfast_result(question, found, inp, len(places), per_token, spans is not None)
        if found.deltas is not None and found.changes is not None and method.multiplied and not asked.has_tolerance:
            _warn_if_not_converged(found.deltas, found.changes, asked.quadrature.n_steps)
        others = ([result.deltas] if return_convergence_delta else []) + ([found.report] if return_report else [])
        return (result, *others) if others else result

    def _get_target_tokens(
        self, inp: TextTokenInput, target: str | Tensor | None = None, gen_args: dict[str, Any] | None = None
    ) -> Tensor:
        """Returns the ids of the answer, (tokens,), which the model generates if `target` is None."""
        if target is not None:
            if gen_args is not None:
                raise ArgumentError("gen_args are for answers that the model generates; got target too")
            return parse_answer(target, self.tokenizer)
        if not callable(getattr(self.model, "generate", None)):
            raise ArgumentError("target must be given: the model has no `generate`; got None")
        prompt = inp.to_model_input().to(self.device)
        with torch.no_grad():
            ids = self.model.generate(input_ids=prompt, **(gen_args or DEFAULT_GEN_ARGS))[0]
        is_separate = teacher_of(self.model) is not Teacher  # a decoder's output has a start, and not the prompt
        return parse_answer(ids[1 if is_separate else inp.inp_tensor.shape[1] :], self.tokenizer)

    def _igfast_paths(self, teacher: Teacher, inp: TextTokenInput, asked: Asked, prefix: str, warns: bool) -> Paths:
        prompt = inp.to_model_input().to(self.device)
        baseline = parse_token_baseline(inp, asked.baselines, self.tokenizer, self.device, warns)
        answer = teacher.answer
        ids = teacher.ids(prompt, answer)
        start = teacher.ids(baseline.ids, answer if prefix == "fixed" else torch.full_like(answer, baseline.filler))
        moves = torch.full(ids.shape[1:], prefix == "path", device=self.device)
        moves[: prompt.shape[1]] = True if inp.itp_mask is None else inp.itp_mask[0].to(self.device)
        return Paths(ids, start, baseline.at_layer, moves)

    def _igfast_found(
        self, method: Method, question: Question, asked: Asked, one_pass: Literal["auto", True, False]
    ) -> Found:
        """Returns the attributions from one pass for all tokens, or token by token where that gives other numbers."""
        if one_pass is not False:
            before = random_state(self.device)
            try:
                return question.at_once(method, asked)
            except OnePassError as error:
                reason = str(error)
            if one_pass is True:
                raise OnePassError(f"one_pass=True, but {reason}")
            before.restore()  # outside the handler, whose traceback holds the failed pass
            warn(f"each token of the answer was attributed by itself, which takes longer: {reason}")
        return question.token_by_token(method, asked)

    def _igfast_result(
        self, question: Question, found: Found, inp: TextTokenInput, n_rows: int, per_token: bool, is_spans: bool
    ) -> LLMAttributionResult:
        answer, places, rows = question.teacher.answer, question.teacher.places[:n_rows], found.rows
        if inp.itp_mask is not None:
            rows = rows[:, inp.itp_mask[0].to(rows.device)]
        tokens = _readable(answer, self.tokenizer)
        log_probs = found.log_probs
        if is_spans:
            tokens = [self.tokenizer.decode(answer[span.start : span.stop]) for span in places]
            log_probs = torch.stack([log_probs[span.start : span.stop].sum() for span in places])
        return LLMAttributionResult(
            input_tokens=inp.values,
            output_tokens=tokens,
            seq_attr=rows[-1] if len(rows) > n_rows else rows.sum(dim=0),
            token_attr=rows[:n_rows] if per_token else None,
            output_probs=log_probs.exp().float(),
            inp=inp,
            deltas=None if found.deltas is None else found.deltas[:n_rows],
            changes=None if found.changes is None else found.changes[:n_rows],
        )

    def _igfast_left_to_captum(
        self, inp: Any, target: Any, gen_args: Any, ours: dict[str, bool], kwargs: dict[str, Any]
    ) -> Any:
        """Returns what Captum's own code does for methods that igfast does not run itself."""
        if self.attr_target != "log_prob":
            raise ArgumentError(f"attr_target must be log_prob with this attr_method; got {self.attr_target!r}")
        asked_for = sorted(name for name, value in ours.items() if value)
        if asked_for:
            raise ArgumentError(f"attr_method is left to Captum's code, which does not have {asked_for}")
        return super().attribute(inp, target, gen_args, **kwargs)


def _start_of(gen_args: dict[str, Any] | None) -> int | None:
    """Returns the id that a decoder begins an answer with, if the arguments of `generate` say which."""
    given = gen_args or {}
    start = given.get("decoder_start_token_id")
    return getattr(given.get("generation_config"), "decoder_start_token_id", None) if start is None else start


def _readable(ids: Tensor, tokenizer: Any) -> list[str]:
    """Returns tokens as Captum shows them; each by itself where the last one ends inside a character."""
    try:
        tokens: list[str] = _convert_ids_to_pretty_tokens(ids, tokenizer)
    except (IndexError, NotImplementedError):  # Captum reads past the end; a slow tokenizer has no offsets
        tokens = [tokenizer.decode([one]) for one in ids.tolist()]
    return tokens


def _warn_if_not_converged(deltas: Tensor, changes: Tensor, n_steps: int) -> None:
    """Warns if the deltas of all rows are large, in the L2 norm, and says how many steps may do."""
    delta, change = float(deltas.norm()), float(changes.norm())
    if delta <= _LARGE_DELTA * change:
        return
    enough = -(-n_steps * delta // max(_LARGE_DELTA * change, 1e-30)) if change else 0
    advice = f"n_steps={int(enough)}" if n_steps < enough <= _MOST_ADVISED else "another baseline"
    warn(
        f"the attributions are not converged with {n_steps} steps: their deltas are {delta:.3g} (L2 norm over rows), "
        f"and the change of what is attributed is {change:.3g}. {advice} may do, or tolerance=0.05 in the place of "
        "n_steps",
        ConvergenceWarning,
    )
