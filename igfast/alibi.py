"""Alibi's interface of Integrated Gradients, for PyTorch models.

    from igfast.alibi import IntegratedGradients  # was: from alibi.explainers import IntegratedGradients

Alibi explains TensorFlow models. Here the same arguments explain a PyTorch model, with NumPy arrays in and out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from igfast.attr import IntegratedGradients as _OfInputs
from igfast.attr import LayerIntegratedGradients as _OfLayer
from igfast.errors import ArgumentError, ArgumentTypeError, OutputTypeError, TargetError, TargetTypeError
from igfast.explanation import Explanation as _Result
from igfast.explanation.explain import flattened, tensors_of
from igfast.explanation.result import as_arrays
from igfast.model.forward import copied
from igfast.model.modules import floating_dtype
from igfast.model.state import buffers_restored
from igfast.request.inputs import describe, one_for_each
from igfast.run.quadrature import quadrature_rule

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Explanation:
    """An explanation as Alibi has it. Every entry of `data` is an attribute too: `explanation.attributions`.

    Attributes:
        data: `X`, `forward_kwargs`, `baselines` and `target` as they were used; `attributions`, a list with one array
            for each input (or tensor of the layer); `predictions`, the model's output for `X`; `deltas`, (batch,).
        meta: `name`, `type`, `explanations`, `params` and `version`.
    """

    data: dict[str, Any]
    meta: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name in ("data", "meta") or name not in self.data:
            raise AttributeError(f"the explanation has no {name!r}; its data are {sorted(vars(self).get('data', {}))}")
        return self.data[name]

    def to_json(self) -> str:
        """Returns the explanation as JSON text, with arrays as nested lists; NaN and infinities as JavaScript has them.

        Example:
            >>> explainer = igfast.alibi.IntegratedGradients(torch.nn.Linear(2, 2), n_steps=5)
            >>> sorted(json.loads(explainer.explain(np.ones((1, 2)), target=0).to_json()))
            ['data', 'meta']
        """
        return json.dumps({"meta": self.meta, "data": self.data}, default=_as_lists)

    @classmethod
    def from_json(cls, text: str) -> Explanation:
        """Returns the explanation that `to_json` wrote; arrays stay nested lists, as in Alibi."""
        content = json.loads(text)
        return cls(content["data"], content["meta"])


class IntegratedGradients:
    """Explains a PyTorch model with the arguments and the results of Alibi's explainer.

    Args:
        model: a module that takes one tensor, or several by position, and returns (batch, ...).
        layer: the module to whose outputs the prediction is attributed, or a function of the model that returns it.
            None attributes to the inputs.
        target_fn: a function from the predictions, a NumPy array, to the targets, for instance
            `functools.partial(np.argmax, axis=1)`. It is used where `explain` gets no target.
        method: the quadrature rule, one of `igfast.METHODS`.
        n_steps: points along the path.
        internal_batch_size: the most path points in the model at a time; None lets igfast choose.

    Raises:
        ArgumentTypeError: `model` is not a module, `target_fn` is not callable, or `layer` is neither a module nor a
            function of the model that returns one.
        ArgumentError: `method` is not a rule, or `n_steps` is too small for it.

    Source: Klaise and others 2021, "Alibi Explain", JMLR 22(181), for the interface; Sundararajan, Taly, Yan 2017,
        arXiv:1703.01365, for the method.

    Example:
        >>> explainer = igfast.alibi.IntegratedGradients(torch.nn.Linear(2, 2), target_fn=lambda p: p.argmax(axis=1))
        >>> explainer.explain(np.ones((3, 2))).attributions[0].shape
        (3, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module | Callable[[nn.Module], nn.Module] | None = None,
        target_fn: Callable[[Array], Any] | None = None,
        method: str = "gausslegendre",
        n_steps: int = 50,
        internal_batch_size: int | None = 100,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentTypeError(f"model must be a torch.nn.Module; got {describe(model)}")
        if target_fn is not None and not callable(target_fn):
            raise ArgumentTypeError(f"target_fn must be callable; got {describe(target_fn)}")
        found = layer(model) if callable(layer) and not isinstance(layer, nn.Module) else layer
        if found is not None and not isinstance(found, nn.Module):
            raise ArgumentTypeError(f"layer must be a module, or a function that finds one; got {describe(found)}")
        quadrature_rule(method, n_steps)  # checks both
        self.model, self.layer, self.target_fn = model, found, target_fn
        self.method, self.n_steps, self.internal_batch_size = method, n_steps, internal_batch_size

    def explain(
        self,
        X: Array | Sequence[Array],  # noqa: N803
        forward_kwargs: Mapping[str, Any] | None = None,
        baselines: int | float | Array | Sequence[int | float | Array] | None = None,
        target: int | Sequence[int] | Array | None = None,
        attribute_to_layer_inputs: bool = False,
    ) -> Explanation:
        """Attributes the model's predictions for `X`.

        Args:
            X: an array, (batch, *features), or a list of arrays, one for each input of the model. Floating arrays
                become of the model's dtype.
            forward_kwargs: keyword arguments of the model. Arrays and tensors with one entry for each example are
                repeated for the path points; they become tensors.
            baselines: None (zero), a number, or an array of the shape of `X`; a list of these for a list of inputs.
            target: the output to explain: an int for all examples, or one for each; for outputs with more dimensions, a
                row of indices for each. None where `target_fn` tells, or the model has one output. For a model with
                one output, (batch, 1) or (batch,), 1 attributes the output and 0 its complement.
            attribute_to_layer_inputs: attribute to what the layer takes in.

        Returns:
            An explanation: its `attributions` are a list of arrays, its `deltas` an array, (batch,).

        Raises:
            TargetError: the target is missing or does not exist in the output.
            TargetTypeError: `target_fn` does not return integers.
            ArgumentError: `attribute_to_layer_inputs` without a layer.
            And whatever `igfast.IntegratedGradients.attribute` raises.

        Source: Klaise and others 2021, "Alibi Explain", JMLR 22(181), for arguments and results.

        Example:
            >>> explainer = igfast.alibi.IntegratedGradients(torch.nn.Linear(2, 1), n_steps=5)
            >>> explainer.explain(np.ones((3, 2)), baselines=0.5).deltas.shape
            (3,)
        """
        if attribute_to_layer_inputs and self.layer is None:
            raise ArgumentError("attribute_to_layer_inputs needs a layer; the explainer has none")
        xs = tuple(X) if isinstance(X, (list, tuple)) else (X,)
        kwargs = dict(forward_kwargs or {})
        starts = tuple(baselines) if isinstance(baselines, (list, tuple)) else baselines
        given = tensors_of(self.model, {"X": xs, "baselines": starts, "forward_kwargs": tuple(kwargs.values())})
        if self.layer is None:  # a path needs floating points, and the model takes these
            given["X"] = tuple(_floating(x, self.model) for x in given["X"])
        forward: nn.Module = _WithKeywords(self.model, len(xs), tuple(kwargs))
        with torch.no_grad(), buffers_restored(self.model):
            output = forward(*map(copied, (*given["X"], *given["forward_kwargs"])))
        predictions = _as_array(output)
        if target is None and self.target_fn is not None:
            target = self.target_fn(predictions)
        targets = _checked_targets(target, len(xs[0]))
        picked, signs = _picked(output, targets, len(xs[0]))
        further = given["forward_kwargs"]
        if signs is not None:
            forward = _Signed(forward, len(xs))
            further = (torch.as_tensor(signs, device=output.device).to(output.dtype), *further)
        asked = (given["X"], given["baselines"], picked, further or None, self.n_steps, self.method)
        result = self._explain(forward, attribute_to_layer_inputs, *asked)
        used = [_expanded(b, x) for b, x in zip(one_for_each(result.baselines, len(xs)), given["X"], strict=True)]
        data = {
            "X": X,
            "forward_kwargs": kwargs,
            "baselines": used if isinstance(X, (list, tuple)) else used[0],
            "target": targets,
            "attributions": [_as_array(tensor) for tensor in flattened(result.attributions)],
            "predictions": predictions,
            "deltas": _as_array(result.deltas),
        }
        return Explanation(data, self._meta(attribute_to_layer_inputs))

    def _explain(self, forward: nn.Module, at_layer_inputs: bool, *asked: Any) -> _Result:
        if self.layer is None:
            return _OfInputs(forward).explain(*asked, self.internal_batch_size)
        explainer = _OfLayer(forward, self.layer)
        return explainer.explain(*asked, self.internal_batch_size, attribute_to_layer_input=at_layer_inputs)

    def _meta(self, at_layer_inputs: bool) -> dict[str, Any]:
        names = [name for name, module in self.model.named_modules() if module is self.layer]
        return {
            "name": "IntegratedGradients",
            "type": ["whitebox"],
            "explanations": ["local"],
            "params": {
                "target_fn": getattr(self.target_fn, "__name__", None if self.target_fn is None else "target_fn"),
                "method": self.method,
                "n_steps": self.n_steps,
                "internal_batch_size": self.internal_batch_size,
                "layer": names[0] if names else None,
                "attribute_to_layer_inputs": at_layer_inputs,
            },
            "version": version("igfast"),
        }


class _WithKeywords(nn.Module):
    """A model whose keyword arguments come by position, after the inputs."""

    def __init__(self, model: nn.Module, n_inputs: int, keys: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.n_inputs, self.keys = model, n_inputs, keys
        self.training = getattr(model, "training", False)

    def forward(self, *args: Any) -> Any:
        """Returns the model's output."""
        inputs, values = args[: self.n_inputs], args[self.n_inputs :]
        return self.model(*inputs, **dict(zip(self.keys, values, strict=True)))


class _Signed(nn.Module):
    """A model with one output, of which the examples' signs say whether the output or its complement is explained."""

    def __init__(self, model: nn.Module, n_inputs: int) -> None:
        super().__init__()
        self.model, self.n_inputs = model, n_inputs
        self.training = getattr(model, "training", False)

    def forward(self, *args: Any) -> Any:
        """Returns the model's output, (batch, 1) or (batch,), times the signs, (batch,)."""
        inputs, signs, values = args[: self.n_inputs], args[self.n_inputs], args[self.n_inputs + 1 :]
        output = self.model(*inputs, *values)
        return output * signs.reshape(-1, *(1,) * (output.dim() - 1)) if output.dim() else output * signs[0]


def _checked_targets(target: Any, batch: int) -> Array | None:
    """Returns a target as integers, (batch,) or (batch, indices); None for none."""
    if target is None:
        return None
    targets = np.asarray(target)
    if targets.dtype.kind not in "iu":
        raise TargetTypeError(f"target must be integers; got {targets.dtype} of shape {targets.shape}")
    targets = targets.astype(np.int64)  # signs are negative
    if targets.ndim == 0:
        return np.full(batch, targets)
    if targets.ndim > 2 or len(targets) != batch:
        raise TargetError(f"target must have one entry per example, {batch}; got shape {targets.shape}")
    return targets


def _picked(output: Any, targets: Array | None, batch: int) -> tuple[Any, Array | None]:
    """Returns the target of `attribute`, and for a model with one output the sign of each example."""
    is_row = isinstance(output, Tensor) and output.dim() < 2  # one number for each example, or a single example's
    n_rows = output.numel() if is_row else 0
    has_one = (is_row and n_rows == batch) or (
        isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] == 1
    )
    if targets is None:
        if isinstance(output, Tensor) and not has_one:
            raise TargetError(f"target is None, but the model returned {describe(output)}; pass target or target_fn")
        return None, None
    if not has_one:
        return [tuple(map(int, np.atleast_1d(row))) for row in targets], None
    if not np.isin(targets, (0, 1)).all():
        raise TargetError("for a model with one output, target must be 0 or 1 for each example")
    return None, 2 * targets.reshape(-1) - 1


def _floating(x: Any, model: Any) -> Any:
    """Returns a tensor of integers in the dtype of the model's weights; anything else as it is."""
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex() or x.dtype is torch.bool:
        return x
    return x.to(floating_dtype(model) or torch.get_default_dtype())


def _as_array(output: Any) -> Array:
    if not isinstance(output, Tensor):
        raise OutputTypeError(f"the model must return a tensor; got {describe(output)}")
    array: Array = as_arrays(output)
    return array


def _expanded(baseline: Any, x: Tensor) -> Array:
    return _as_array(torch.as_tensor(baseline, dtype=x.dtype, device=x.device).expand_as(x))


def _as_lists(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Tensor):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} has no JSON form")
