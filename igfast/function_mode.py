"""The base of igfast's function modes, which an interrupt leaves where they belong."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode


class FunctionMode(TorchFunctionMode):
    """A mode that ends cleanly where Ctrl-C came while PyTorch had taken it off, as it does for each function called.

    Its place on the stack may then be empty, or another mode's. PyTorch may also put the mode back later, when the
    traceback is freed: it must do nothing while it is not `is_active`.
    """

    _n_entered = 0

    @property
    def is_active(self) -> bool:
        """Whether the mode is between entry and exit."""
        return self._n_entered > 0

    def __enter__(self) -> Any:
        self._n_entered += 1
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self._n_entered -= 1
        if self in _get_current_function_mode_stack():
            while _pop_mode() is not self:
                pass
