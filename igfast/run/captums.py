"""Calls that igfast does not improve, by Captum's own code: the same numbers, the same graph, the same cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from igfast.errors import ArgumentError, LeanError
from igfast.request.options import Options
from igfast.run.report import LeanReport, RunReport


def left_to_captum(
    why: str, options: Options, attribute: Callable[..., Any], arguments: dict[str, Any], with_report: bool
) -> Any:
    """What Captum's `attribute` returns.

    Args:
        why: why the call is left to it, for the report and for errors.
        options: igfast's own.
        attribute: Captum's method, bound.
        arguments: its arguments by name.
        with_report: whether a report is to be returned, too.

    Raises:
        LeanError: lean execution is required.
        ArgumentError: the quadrature rule is one that Captum does not have.
    """
    if options.lean is True:
        raise LeanError(f"lean=True, but lean execution is not possible: {why}")
    if arguments["method"] == "trapezoid":
        raise ArgumentError(f"method='trapezoid' is not one of Captum's rules, and the call is left to Captum: {why}")
    began = time.perf_counter()
    result = attribute(**arguments)
    if not with_report:
        return result
    inputs = arguments["inputs"]
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    device = next((str(x.device) for x in given if isinstance(x, Tensor)), "unknown")
    report = RunReport(
        n_rows=0,
        n_evaluations=0,
        chunks={},
        channels_last=False,
        lean=LeanReport(why, {}, {}),
        peak_bytes=None,
        budget_bytes=None,
        seconds=time.perf_counter() - began,
        device=device,
        kernels="none",
        notes=(f"computed by Captum's own code: {why}",),
    )
    return (*result, report) if arguments["return_convergence_delta"] else (result, report)
