"""The `TorchFunctionMode` of lean execution, and the table of functions that it replaces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch._C import _len_torch_dispatch_stack

from igfast.function_mode import FunctionMode
from igfast.lean import activations, batch_norm, convolution, linear, pooling
from igfast.lean.handlers import Plain

_TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    **activations.TABLE,
    **batch_norm.TABLE,
    **convolution.TABLE,
    **linear.TABLE,
    **pooling.TABLE,
}
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_ORDINARY = frozenset({torch.Tensor, torch.nn.Parameter})
_DIFFERENTIATES = frozenset({torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward})


class LeanMode(FunctionMode):
    """Replaces calls by lean operators while the mode is active in a thread.

    Args:
        refusals: gets why a call cannot be had in lean execution at all, as the model may catch the error itself.

    Attributes:
        swapped: how many calls of each function were replaced.
        plain: how many calls of functions in the table were not replaced, by function and reason.
        ignored: the hook on saved tensors under which calls are replaced all the same: it packs whatever is saved. A
            checkpoint's hook must find the same tensors when it runs again, without the mode.
    """

    def __init__(self, refusals: list[str] | None = None) -> None:
        super().__init__()
        self._refusals = [] if refusals is None else refusals
        self._n_dispatch_modes = 0
        self.swapped: Counter[str] = Counter()
        self.plain: Counter[tuple[str, str]] = Counter()
        self.ignored: Callable[..., Any] | None = None

    def __enter__(self) -> LeanMode:
        self._n_dispatch_modes = _len_torch_dispatch_stack()
        super().__enter__()
        return self

    def is_hooked(self) -> bool:
        """Returns whether a hook on saved tensors is active that is not ignored."""
        hooks = _saved_tensors_hooks(True)
        return hooks is not None and hooks[0] is not self.ignored

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # A function inside the model that is being compiled would be cut into pieces here.
        if torch.compiler.is_compiling() or not self.is_active:
            return func(*args, **(kwargs or {}))
        handler = _TABLE.get(func)
        if handler is None:
            if func in _DIFFERENTIATES:
                self._refusals.append("the model differentiates inside its forward pass")
                raise NotImplementedError(self._refusals[-1])
            return func(*args, **kwargs) if kwargs else func(*args)
        if not _ORDINARY.issuperset(types):
            result = Plain("a tensor subclass")
        elif self.is_hooked():
            result = Plain("hooks on saved tensors")
        elif _len_torch_dispatch_stack() > self._n_dispatch_modes:
            result = Plain("a TorchDispatchMode")
        else:
            result = handler(*args, **kwargs) if kwargs else handler(*args)
        if type(result) is not Plain:
            self.swapped[func.__name__] += 1
            return result
        if result:
            self.plain[func.__name__, str(result)] += 1
        return func(*args, **kwargs) if kwargs else func(*args)
