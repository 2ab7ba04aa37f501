"""Products of an activation and another tensor, as in SwiGLU: autograd saves the activation's input, not itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ACTIVATIONS = {"SiluBackward0", "GeluBackward0"}


def gated_product(input: Any, other: Any) -> Tensor | None:
    """Returns `input * other` if one of them is an activation that just ran; None if none is.

    Autograd would save both factors, and the activation its own input too. Here it saves the activation's input and
    the other factor, and computes the activation again.
    """
    for activated, gate in ((input, other), (other, input)):
        if type(activated) is not Tensor or type(gate) is not Tensor or not gate.requires_grad:
            continue
        node: Any = activated.grad_fn
        alike = activated.shape == gate.shape and activated.dtype == gate.dtype
        if alike and type(node).__name__ in _ACTIVATIONS:
            kind = getattr(node, "_saved_approximate", "silu")
            product: Tensor = _Product.apply(node._saved_self, gate, activated.detach(), kind)
            return product
    return None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, activated: Tensor, kind: str) -> Tensor:
        """Returns the product; keeps the gate and the activation's input."""
        ctx.save_for_backward(x, gate)
        ctx.kind = kind
        return activated * gate

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Returns the gradients of the activation's input and of the gate."""
        x, gate = ctx.saved_tensors
        of_x = grad * gate
        if ctx.kind == "silu":
            torch.ops.aten.silu_backward.grad_input(of_x, x, grad_input=of_x)
            of_gate = torch.nn.functional.silu(x)
        else:
            torch.ops.aten.gelu_backward.grad_input(of_x, x, approximate=ctx.kind, grad_input=of_x)
            of_gate = torch.nn.functional.gelu(x, approximate=ctx.kind)
        return of_x, of_gate.mul_(grad), None, None
