"""Products of an activation and another tensor, as in SwiGLU: autograd saves the activation's input, not itself."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ACTIVATIONS = {"SiluBackward0", "GeluBackward0"}


def gated_product(input: Any, other: Any) -> Tensor | None:
    """Returns `input * other` if one of them is an activation that just ran; None if none is.

    Autograd would save both factors, and the activation its own input too. Here the product saves that input, which the
    activation's node holds anyway, and the other factor, and computes the activation again. That node stays in the
    graph, with the hooks that a user may have put on the activation.
    """
    for activated, gate in ((input, other), (other, input)):
        if type(activated) is not Tensor or type(gate) is not Tensor or not gate.requires_grad:
            continue
        node: Any = activated.grad_fn
        alike = activated.shape == gate.shape and activated.dtype == gate.dtype
        is_as_computed = activated._version == 0  # not written to, as an ablation does under torch.no_grad()
        if alike and type(node).__name__ in _ACTIVATIONS and is_as_computed:
            kind = getattr(node, "_saved_approximate", "silu")
            product: Tensor = _Product.apply(activated, gate, node._saved_self.detach(), kind)
            return product
    return None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activated: Tensor, gate: Tensor, x: Tensor, kind: str) -> Tensor:
        """Returns the product; keeps the gate and the activation's input."""
        ctx.save_for_backward(x, gate)
        ctx.kind = kind
        return activated * gate

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Returns the gradients of the activation and of the gate."""
        x, gate = ctx.saved_tensors
        is_silu = ctx.kind == "silu"
        activated = F.silu(x) if is_silu else F.gelu(x, approximate=ctx.kind)
        return grad * gate, activated.mul_(grad), None, None
