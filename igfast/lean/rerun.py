"""Small modules of transformers that keep their input alone, and run their own forward again for the gradient.

An activation that is written in several PyTorch functions keeps a tensor for most of them. A root mean square norm in
half precision keeps its input in single precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
    return [part for part in parts if _is_activation(part) or _is_norm(part)]


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
    if mode.is_hooked():
        return forward(x)
    if _is_norm(getattr(forward, "__self__", None)) and x.dtype.itemsize >= 4:
        return forward(x)
    return _Rerun.apply(x, forward)


def _is_activation(part: nn.Module) -> bool:
    return type(part).__module__ == "transformers.activations" and type(part).__name__ in _ACTIVATIONS


def _is_norm(part: Any) -> bool:
    kind = type(part)
    return kind is nn.RMSNorm or (
        kind.__module__.startswith("transformers.models.") and kind.__name__.endswith("RMSNorm")
    )


class _Rerun(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns what the module gives; keeps its input."""
        ctx.save_for_backward(x)
        ctx.run = forward
        return forward(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Returns the gradient of the input, from another run of the module."""
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            (found,) = torch.autograd.grad(ctx.run(x), x, grad)
        return found, None
