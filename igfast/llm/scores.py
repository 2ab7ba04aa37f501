"""What is attributed of an answer's tokens: their log-probabilities, or other numbers that the logits give."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from igfast.errors import ArgumentError, ArgumentTypeError

Score = Callable[[Tensor, Tensor, int], Tensor]
"""Takes logits (rows, tokens, vocabulary), the answer's ids (tokens,) and the place t of a token; gives (rows,)."""


def log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """Returns the log-probability of each token, (rows, tokens), of as many ids and predictions."""
    return logits.log_softmax(dim=-1).gather(2, ids.expand(len(logits), -1).unsqueeze(2)).squeeze(2)


def log_prob(logits: Tensor, ids: Tensor, t: int) -> Tensor:
    """Returns the log-probability of token t, (rows,)."""
    return _of_token(logits[:, t].log_softmax(dim=-1), ids, t)


def _of_token(values: Tensor, ids: Tensor, t: int) -> Tensor:
    """Returns the column of token t, (rows,). An index that is a number on a GPU would have to be waited for."""
    return values.index_select(1, ids[t : t + 1].to(values.device, non_blocking=True)).squeeze(1)


def prob(logits: Tensor, ids: Tensor, t: int) -> Tensor:
    """Returns the probability of token t, (rows,)."""
    return log_prob(logits, ids, t).exp()


def logit(logits: Tensor, ids: Tensor, t: int) -> Tensor:
    """Returns the logit of token t, (rows,)."""
    return _of_token(logits[:, t], ids, t)


def entropy(logits: Tensor, ids: Tensor, t: int) -> Tensor:  # noqa: ARG001
    """Returns the entropy, in nats, of the distribution that token t is drawn from, (rows,)."""
    log_probs = logits[:, t].log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def logit_diff(foil: Tensor) -> Score:
    """Returns the score that is the logit of a token less that of the foil in its place, for the foil's ids."""
    return lambda logits, ids, t: logit(logits, ids, t) - logit(logits, foil, t)


def prob_diff(foil: Tensor) -> Score:
    """Returns the score that is the probability of a token less that of the foil in its place, for the foil's ids."""
    return lambda logits, ids, t: prob(logits, ids, t) - prob(logits, foil, t)


def kl(at_input: Tensor) -> Score:
    """Returns the Kullback-Leibler divergence, in nats, of a distribution from that at the input.

    `at_input` has the log-probabilities there, (tokens, vocabulary).
    """

    def score(logits: Tensor, ids: Tensor, t: int) -> Tensor:  # noqa: ARG001
        wanted = at_input[t]
        return (wanted.exp() * (wanted - logits[:, t].log_softmax(dim=-1))).sum(dim=-1)

    return score


def joint(score: Score, logits: Tensor, ids: Tensor, places: range) -> Tensor:
    """Returns the score of several tokens together, (rows,): the probability of all, or the sum of other scores."""
    if score in (log_prob, prob) and len(places) > 1:
        # At once: the gradient of each token's part of the logits would be as large as all logits.
        of_places = logits if len(places) == logits.shape[1] else logits[:, places.start : places.stop]
        total = log_probs(of_places, ids[places.start : places.stop]).sum(dim=1)
        return total if score is log_prob else total.exp()
    total = score(logits, ids, places[0])
    for t in places[1:]:
        total = total + score(logits, ids, t)
    return total


_OF_TOKENS: dict[str, Score] = {"log_prob": log_prob, "prob": prob, "logit": logit, "entropy": entropy}
_AGAINST_FOIL = {"logit_diff": logit_diff, "prob_diff": prob_diff}
NAMES = (*_OF_TOKENS, *_AGAINST_FOIL, "kl")


def check_name(attr_target: object) -> None:
    """Raises unless `attr_target` is the name of a score or a function."""
    if isinstance(attr_target, str):
        if attr_target not in NAMES:
            raise ArgumentError(f"attr_target must be a function or one of {', '.join(NAMES)}; got {attr_target!r}")
    elif not callable(attr_target):
        raise ArgumentTypeError(f"attr_target must be a name or a function; got a {type(attr_target).__name__}")


def score_of(attr_target: str | Score, foil: Tensor | None, at_input: Callable[[], Tensor]) -> Score:
    """Returns the score that `attr_target` names.

    Args:
        attr_target: a name of `NAMES`, or the score itself.
        foil: (tokens,) int64, or None.
        at_input: returns the log-probabilities at the input, for "kl".

    Raises:
        ArgumentError: a foil is missing, or not used.
    """
    if attr_target in _AGAINST_FOIL:
        if foil is None:
            raise ArgumentError(f'attr_target="{attr_target}" needs a foil: what the answer is compared with')
        return _AGAINST_FOIL[attr_target](foil)
    if foil is not None:
        raise ArgumentError(f"foil is for attr_target={' or '.join(_AGAINST_FOIL)}; got attr_target={attr_target!r}")
    if attr_target == "kl":
        return kl(at_input())
    return _OF_TOKENS[attr_target] if isinstance(attr_target, str) else attr_target
