"""Reads layers' values at the ends of the paths, and makes the forward function from the layers on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from igfast.errors import ArgumentError, LayerError, warn
from igfast.interrupts import must_pass
from igfast.memory.scope import MemoryUse
from igfast.model.forward import ForwardFunction, copied
from igfast.model.independence import distance
from igfast.model.partial import FromLayer
from igfast.model.tap import LayerTap, Values
from igfast.request.inputs import Inputs, describe
from igfast.request.model_inputs import AtLayer
from igfast.run.engine import Loop
from igfast.run.plan import ChunkPlan

_SAME = 5e-2  # of the largest output: rounding is less on any device, another grouping is more


def from_layer(forward: ForwardFunction, at_layer: AtLayer | None, tap: LayerTap, memory: MemoryUse) -> FromLayer:
    """Returns the forward function from the layers on.

    The inputs of that function are the layers' values at the inputs and the baselines.
    """
    given = forward.inputs
    if given.batch == 0:
        raise ArgumentError("inputs must hold at least one example, or the layer's values have no shape; got none")
    at_input, output_at_inputs = read_layers(forward, given.x, tap, memory)
    x = flat(at_input)
    if at_layer is None:
        at_baseline, output_at_baselines = read_layers(forward, given.baselines, tap, memory)
        baseline = flat(at_baseline)
    else:
        baseline, output_at_baselines = at_layer.for_values(x), None
    for value, other in zip(x, baseline, strict=True):
        if value.shape != other.shape or value.dim() == 0:
            raise LayerError(
                f"the layer's {tap.what} is {describe(value)} for the inputs and {describe(other)} for the baselines; "
                "a path needs one shape"
            )
    why_joint = forward.why_whole_steps() or _why_joint(x, given.batch, tap.what)
    group = tuple(1 if why_joint else v.shape[0] // given.batch for v in x)
    evaluator = FromLayer(
        forward_func=forward.forward_func,
        inputs=_layer_inputs(x, baseline, given.batch, group, f"the layer's {tap.what}"),
        args=(*given.x, *forward.args),
        lean=forward.lean,
        unused_is_zero=forward.unused_is_zero,
        tap=tap,
        per_layer=tuple(len(values) for values in at_input),
        group=group,
        output_at_inputs=output_at_inputs,
        output_at_baselines=output_at_baselines,
    )
    if not why_joint and max(group) > 1 and not _are_side_by_side(evaluator):
        why_joint = f"the layer's {tap.what} has several entries per example, and they are not side by side"
        evaluator = replace(
            evaluator,
            inputs=_layer_inputs(x, baseline, given.batch, (1,) * len(x), f"the layer's {tap.what}"),
            group=(1,) * len(x),
        )
    return evaluator.in_whole_steps(why_joint) if why_joint else evaluator


def flat(values: list[Values]) -> Values:
    """Returns the tensors of all layers in one tuple."""
    return tuple(value for layer in values for value in layer)


def _layer_inputs(x: Values, baseline: Values, batch: int, group: tuple[int, ...], name: str) -> Inputs:
    x, baseline = (
        tuple(v.unflatten(0, (batch, k)) if k > 1 else v for v, k in zip(side, group, strict=True))
        for side in (x, baseline)
    )
    return Inputs(x, baseline, True, (), batch, "", name)


def _why_joint(values: Values, batch: int, what: str) -> str:
    for value in values:
        if value.shape[0] == 0 or value.shape[0] % batch:
            return f"the layer's {what} is {describe(value)}, not one entry for each of the {batch} examples"
    return ""


def read_layers(forward: ForwardFunction, xs: Values, tap: LayerTap, memory: MemoryUse) -> tuple[list[Values], Any]:
    """Returns each layer's values for all examples, and the output; in parts where memory does not hold all."""
    batch, examples = forward.inputs.batch, forward.all_examples()
    n_parts = 1 if forward.why_whole_steps() else batch  # the most parts
    row_bytes = sum(x.nbytes for x in xs) // batch

    def read(rows: slice) -> tuple[list[Values], Any]:
        if rows.stop - rows.start == n_parts:
            args = tuple(map(copied, (*xs, *forward.args)))
        else:
            args = tuple(forward._repeat(arg, examples[rows]) for arg in (*xs, *forward.args))
        return tap.read(lambda: forward._checked(*args))

    plan = ChunkPlan(n_rows=n_parts, rows=n_parts, row_bytes=row_bytes)
    loop = Loop(plan, memory, forward.save_memory, "one example")
    chunks = list(loop.over(n_parts, read))
    parts = [part for _, part in chunks]
    if len(parts) == 1:
        return parts[0]
    _check_independent(read, *chunks[0])
    values = [
        tuple(torch.cat(column) for column in zip(*layer, strict=True))
        for layer in zip(*(v for v, _ in parts), strict=True)
    ]
    return values, torch.cat([output for _, output in parts])


def _check_independent(read: Callable[[slice], tuple[list[Values], Any]], rows: slice, whole: Any) -> None:
    """Compares the values of examples that were read together with those of their halves.

    Raises LayerError where the examples depend on each other. Warns where there is one example, and nothing to compare.
    """
    half = (rows.stop - rows.start) // 2
    if half == 0:
        warn("examples are taken to be independent of each other, as memory holds the layer's values of one at a time")
        return
    values, output = whole
    halves = [read(slice(rows.start, rows.start + half)), read(slice(rows.start + half, rows.stop))]
    for number, tensor in enumerate((*flat(values), output)):
        apart = torch.cat([(*flat(of_half), of_output)[number] for of_half, of_output in halves])
        if distance(tensor, apart) > _SAME:
            raise LayerError(
                "the layer's values of one example depend on the others in the batch, and memory does not hold the "
                "values of all examples at once"
            )


def _are_side_by_side(evaluator: FromLayer) -> bool:
    """Returns whether a layer with several entries per example has those of one example next to each other."""
    example = torch.zeros(2, dtype=torch.int64, device=evaluator.inputs.device)
    ends = tuple(torch.stack([x[0], b[0]]) for x, b in zip(evaluator.inputs.x, evaluator.inputs.baselines, strict=True))
    try:
        together = evaluator.output(ends, example)
        apart = [evaluator.output(tuple(e[i : i + 1] for e in ends), example[:1]) for i in range(2)]
    except Exception as error:  # a model may raise anything for rows that it was not given
        if must_pass(error):
            raise
        return False
    outputs = torch.cat([evaluator.comparable(one) for one in apart])
    return distance(evaluator.comparable(together), outputs) <= _SAME


def are_rows(alone: Tensor, among: Tensor, rows: range, n_rows: int) -> bool:
    """Returns whether values of some rows alone are those of the rows among `n_rows`, up to rounding."""
    n_each, rest = divmod(len(among), n_rows)
    return not rest and distance(among[n_each * rows.start : n_each * rows.stop], alone) <= _SAME


def per_layer(attributions: Values, evaluator: FromLayer, as_list: bool) -> Any:
    """Returns attributions in Captum's form: a tensor or a tuple for a layer, a list of those for a list of layers."""
    tensors = iter(attributions)
    layers = [tuple(next(tensors) for _ in range(n)) for n in evaluator.per_layer]
    formatted = [layer if len(layer) > 1 else layer[0] for layer in layers]
    return formatted if as_list else formatted[0]
