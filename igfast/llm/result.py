"""The attributions of an answer to the tokens of its prompt."""

from __future__ import annotations

from typing import Any

from captum.attr import LLMAttributionResult as _CaptumsResult
from torch import Tensor


class LLMAttributionResult(_CaptumsResult):
    """Captum's result, with how far each row is from completeness.

    Attributes:
        seq_attr: the attribution of the whole answer to each token of the prompt, (n_input_tokens,).
        token_attr: of each token of the answer, or of each span, (n_rows, n_input_tokens); None if not asked for.
        input_tokens, output_tokens: the prompt's tokens, and those of the answer, or the text of each span.
        output_probs: the probability of each token of the answer, or of each span, at the input, (n_rows,).
        inp: the prompt, as it was given.
        deltas: the convergence delta of each row: the sum of its attributions, those to tokens that are skipped or come
            after the prompt among them, less the change of what is attributed. (n_rows,), or (1,) for the whole answer.
            None where the method has none.
        changes: the change of what is attributed from the baseline to the input, shaped as `deltas`.

    Source: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, Proposition 1, for the delta.
    """

    def __init__(self, *, deltas: Tensor | None = None, changes: Tensor | None = None, **given: Any) -> None:
        super().__init__(**given)
        self.deltas = deltas
        self.changes = changes
