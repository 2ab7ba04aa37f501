"""What a model makes of a baseline."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from igfast.errors import ArgumentError, ArgumentTypeError, OutputError, OutputTypeError
from igfast.model.forward import copied
from igfast.model.probabilities import are_in_unit_interval, are_probabilities
from igfast.model.state import buffers_restored
from igfast.request.inputs import as_tuple, describe


@dataclass(frozen=True)
class BaselineCheck:
    """What a model makes of a baseline; `print` shows it in words.

    Attributes:
        probabilities: of the classes, for the baseline that the model is surest of, (classes,).
        entropy: of these probabilities, in nats.
        highest_entropy: that of equal probabilities, log(classes).
        leans_to: the class with the highest probability.
        default_class: the class that stands for absence, as the caller said; None if there is none.
        verdict: "good", "leaning" or "decided".
        advice: what that means and what to do, a sentence or two.
    """

    probabilities: Tensor
    entropy: float
    highest_entropy: float
    leans_to: int
    default_class: int | None
    verdict: str
    advice: str

    def __str__(self) -> str:
        share = self.entropy / self.highest_entropy
        return (
            f"Entropy {self.entropy:.2f} of at most {self.highest_entropy:.2f} nats ({share:.0%}). The model leans to "
            f"class {self.leans_to} with probability {self.probabilities[self.leans_to]:.1%}. {self.advice}"
        )


_VERDICTS = ("good", "leaning", "decided")
_UNDECIDED, _DECIDED = 0.5, 0.9  # probabilities of the leading class
_EVEN = 0.15  # how far from 0.5 a two-class model may be to count as undecided


def check_baseline(
    model: Callable[..., Any],
    baseline: Tensor | tuple[Tensor, ...],
    *,
    default_class: int | None = None,
    output: str = "auto",
    additional_forward_args: Any = None,
) -> BaselineCheck:
    """Runs a classifier on a baseline, and tells whether the baseline holds evidence for a class.

    A baseline stands for absence, so the model should be undecided there, or see a class that stands for nothing (a
    default class: "background", "no disease"). Where only two classes exist and both need evidence of their own, the
    model should give each about one half. Otherwise what speaks for the class that the model leans to is in the
    baseline already, and attributions cannot show it.

    Args:
        model: returns (batch, classes), logits or probabilities; or one logit or probability, (batch,) or (batch, 1).
        baseline: (batch, *features), on the model's device; a tuple of these for several inputs.
        default_class: the class that stands for absence, if there is one.
        output: "probabilities", "logits", or "auto", which tells the two apart by their values: rows that sum to one
            are probabilities, and so is one number for each example if all are in [0, 1].
        additional_forward_args: further arguments of the model, one or a tuple.

    Returns:
        A `BaselineCheck`.

    Raises:
        ArgumentTypeError: `model` is not callable, or `baseline` not a tensor or a tuple of tensors.
        ArgumentError: `default_class` is not a class, or `output` none of its values.
        OutputError, OutputTypeError: the output is not of these shapes, or not finite.

    Source: M. Sundararajan, A. Taly, "Integrated Gradients: how to" (2018), sections on baselines and on binary
        classifiers.

    Example:
        >>> check = igfast.baselines.check_baseline(lambda x: x, torch.tensor([[0.1, 0.0, 0.0, 0.05]]))
        >>> check.verdict, check.leans_to
        ('good', 0)
    """
    if not callable(model):
        raise ArgumentTypeError(f"model must be callable; got {describe(model)}")
    given = as_tuple(baseline)
    for one in given or (baseline,):
        if not isinstance(one, Tensor):
            raise ArgumentTypeError(f"baseline must be a tensor or a tuple of tensors; got {describe(one)}")
    with torch.no_grad(), buffers_restored(model):
        values = model(*map(copied, (*given, *as_tuple(additional_forward_args))))
    each = _class_probabilities(values, output, len(given[0]))
    n_classes = each.shape[1]
    if default_class is not None and not 0 <= default_class < n_classes:
        raise ArgumentError(f"default_class must be one of the {n_classes} classes; got {default_class}")
    judged = [_judged(row, default_class) for row in each]
    surest = max(range(len(each)), key=lambda i: (_VERDICTS.index(judged[i][0]), float(each[i].max())))
    entropy = float(torch.special.entr(each[surest]).sum())
    leans_to = int(each[surest].argmax())
    return BaselineCheck(each[surest], entropy, math.log(n_classes), leans_to, default_class, *judged[surest])


def _judged(mean: Tensor, default_class: int | None) -> tuple[str, str]:
    leading, highest = int(mean.argmax()), float(mean.max())
    if default_class is not None and leading == default_class:
        return "good", "That is the default class, so the baseline stands for absence."
    missing = f" The default class {default_class} has {mean[default_class]:.1%}." if default_class is not None else ""
    if len(mean) == 2 and default_class is None:
        if highest <= 0.5 + _EVEN:
            return "good", "Both classes need evidence, and the baseline has about as much for either."
        verdict = "decided" if highest >= _DECIDED else "leaning"
        return verdict, (
            f"With two classes that both need evidence, each should have about one half here. Much of what speaks for "
            f"class {leading} is in the baseline already, so attributions to it are small. Find a baseline near one "
            f"half, or pass default_class={leading} if that class stands for absence."
        )
    if highest < _UNDECIDED:
        return "good", f"The model is undecided, as it should be where nothing is seen.{missing}"
    verdict = "decided" if highest >= _DECIDED else "leaning"
    return verdict, (
        f"The model sees class {leading} in the baseline, so attributions explain what the input has beyond that."
        f"{missing} Try another baseline, or pass default_class={leading} if that class stands for absence."
    )


def _class_probabilities(output: Any, kind: str, batch: int) -> Tensor:
    """Returns a classifier's output as probabilities, (batch, classes) float64: as they are, or the softmax of logits.

    One number for each example becomes two classes, by itself if all are in [0, 1], or else by the logistic function.
    The output of a single example may lack the dimension of examples, as after `squeeze()`.

    `kind` is "probabilities", "logits", or "auto", which guesses. Raises OutputTypeError, OutputError, ArgumentError.
    """
    if kind not in ("auto", "probabilities", "logits"):
        raise ArgumentError(f'output must be "auto", "probabilities" or "logits"; got {kind!r}')
    if not isinstance(output, Tensor):
        raise OutputTypeError(f"the model must return a tensor; got {describe(output)}")
    if output.dim() not in (1, 2) or output.numel() == 0:
        raise OutputError(f"the model must return one number for each class, (batch, classes); got {describe(output)}")
    if output.dim() == 1 and len(output) != batch:
        if batch != 1:
            raise OutputError(
                f"the model must return one entry for each of the {batch} examples; got {describe(output)}"
            )
        output = output.unsqueeze(0)
    values: Tensor = output.detach().double()
    if not torch.isfinite(values).all():
        raise OutputError("the model's output for the baseline holds NaN or infinite numbers")
    if values.dim() == 1 or values.shape[1] == 1:
        values = values.reshape(-1, 1)
        is_probability = kind == "probabilities" or (kind == "auto" and are_in_unit_interval(values))
        one = values if is_probability else values.sigmoid()
        return torch.cat([1 - one, one], dim=1)
    is_probability = kind == "probabilities" or (kind == "auto" and are_probabilities(output))
    return values if is_probability else values.softmax(dim=1)
