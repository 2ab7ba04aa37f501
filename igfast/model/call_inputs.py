"""Checks a call's inputs and baselines, in the dtype that baselines, inputs and model have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from igfast.model.modules import floating_dtype
from igfast.request.inputs import Inputs, as_tuple, parse_inputs
from igfast.request.several_baselines import Baselines


def in_dtype_of_baselines(inputs: Any, baselines: Any, forward_func: Callable[..., Any]) -> Any:
    """Returns inputs in the dtype of wider baselines, as Captum's path points have it, if the model has it too."""
    given = as_tuple(baselines)
    if not any(isinstance(baseline, Tensor) for baseline in given):
        return inputs

    def raised(x: Any, baseline: Any) -> Any:
        if not (isinstance(x, Tensor) and isinstance(baseline, Tensor)):
            return x
        own = x.dtype if x.is_floating_point() or x.is_complex() else torch.get_default_dtype()
        wide = torch.promote_types(own, baseline.dtype)
        return x.to(wide) if wide not in (own, x.dtype) and wide == floating_dtype(forward_func) else x

    xs = as_tuple(inputs)
    if len(xs) != len(given):  # an error, which the checks of inputs say
        return inputs
    found = tuple(map(raised, xs, given))
    return found if isinstance(inputs, tuple) else found[0]


def parsed_for(forward_func: Callable[..., Any], inputs: Any, baselines: Any) -> tuple[Inputs, Baselines | None]:
    """Returns the checked inputs, and the several baselines of each example if those are given; raises as both do."""
    several = baselines if isinstance(baselines, Baselines) else None
    start = None if several is not None else baselines
    parsed = parse_inputs(in_dtype_of_baselines(inputs, start, forward_func), start)
    if several is not None:
        several.check(parsed.join(parsed.x))
    return parsed, several
