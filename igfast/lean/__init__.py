"""Lean execution: a forward pass that keeps only what the gradient with respect to the *input* needs.

Autograd keeps for each operation what the gradients of its weights would need, the whole input of every convolution
for instance. Nobody asks for those here. While the mode of `igfast.lean.mode` is active, calls that its table knows
run as operators of igfast that return the same values and keep less; everything else runs as it is. Nothing of the
model is changed.

Prior art: "You Only Need the Necessary: selective differentiation", arXiv:2404.12406.
"""

from igfast.lean.execution import LeanExecution as LeanExecution
from igfast.lean.execution import compiled as compiled
from igfast.lean.execution import why_not as why_not
