"""Lean execution: a forward pass whose autograd nodes save only what the gradient of the *input* needs.

A `TorchFunctionMode`, `igfast.lean.mode.LeanMode`, replaces calls of the functions in its table by autograd nodes that
return the same values. PyTorch's own nodes also save what gradients of the *weights* need: the whole input of every
convolution, for instance. Attributions need no such gradient. Other calls run unchanged; the model is not modified.

Prior art: Bhatia, Dangel 2024, "Lowering PyTorch's Memory Consumption for Selective Differentiation", arXiv:2404.12406.
"""

from igfast.lean.execution import Execution as Execution
from igfast.lean.execution import why_not_lean as why_not_lean
