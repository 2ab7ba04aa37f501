"""Small modules of transformers that keep their input alone, and run their own forward again for the gradient.

An activation that is written in several PyTorch functions keeps a tensor for most of them. A root mean square norm in
half precision keeps its input in single precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from igfast.lean.lending import own_forward

_ACTIVATIONS = {
    "NewGELUActivation",
    "FastGELUActivation",
    "QuickGELUActivation",
    "LaplaceActivation",
    "ReLUSquaredActivation",
}


def rerun_modules(module: nn.Module | None) -> list[nn.Module]:
    """Returns the modules that keep less if they run again; none of replicated models, which copy modules."""
    parts = list(module.modules()) if module is not None else []
    if any(isinstance(part, nn.DataParallel) for part in parts):
        return []
    return [part for part in parts if (_is_activation(part) or _is_norm(part)) and _has_its_own_forward(part)]


def rerun(mode: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs a module so that autograd keeps its input alone; in single precision, a norm keeps no more than that.

    Not under hooks on saved tensors, unless the lean `mode` ignores them: a checkpoint would find other tensors when it
    runs again.
    """
    if kwargs or len(args) != 1 or type(args[0]) is not Tensor:
        return forward(*args, **kwargs)
    (x,) = args
    if not (torch.is_grad_enabled() and x.requires_grad) or torch.is_autocast_enabled(x.device.type):
        return forward(x)
    if mode.is_hooked() or _get_current_function_mode_stack()[-1] is not mode:  # the model entered a mode of its own
        return forward(x)
    module = getattr(forward, "__self__", None)
    weight = getattr(module, "weight", None)
    if _is_norm(module) and (x.dtype.itemsize >= 4 or (weight is not None and weight.grad_fn is not None)):
        return forward(x)
    return _Rerun.apply(x, forward, module, weight)


def _is_activation(part: nn.Module) -> bool:
    return type(part).__module__ == "transformers.activations" and type(part).__name__ in _ACTIVATIONS


def _is_norm(part: Any) -> bool:
    kind = type(part)
    return kind is nn.RMSNorm or (
        kind.__module__.startswith("transformers.models.") and kind.__name__.endswith("RMSNorm")
    )


def _has_its_own_forward(part: nn.Module) -> bool:
    """Returns whether a module runs what its class was written with: only of that is known what it depends on."""
    written_in = getattr(type(part).forward, "__globals__", {}).get("__name__")
    return own_forward(part) is None and written_in == type(part).__module__


class _Rerun(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Callable[[Tensor], Tensor], module: Any, weight: Tensor | None) -> Tensor:
        """Returns what the module gives; keeps its input, and which weight it had."""
        ctx.save_for_backward(x)
        ctx.run, ctx.module, ctx.weight = forward, module, weight
        ctx.version = None if weight is None else weight._version
        return forward(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradient of the input, from another run of the module."""
        weight = ctx.weight
        if weight is not None and (ctx.module.weight is not weight or weight._version != ctx.version):
            raise RuntimeError(f"the weight of {type(ctx.module).__name__} was replaced within the forward pass")
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            (found,) = torch.autograd.grad(ctx.run(x), x, grad)
        return found, None, None, None
