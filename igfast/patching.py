"""Swaps igfast's classes in under code that imports Captum's."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import captum.attr

from igfast.attr import IntegratedGradients, LayerIntegratedGradients, NeuronIntegratedGradients

# By Captum's class, as it was when igfast was imported: its own base.
_OURS: dict[type, type] = {
    captum.attr.IntegratedGradients: IntegratedGradients,
    captum.attr.LayerIntegratedGradients: LayerIntegratedGradients,
    captum.attr.NeuronIntegratedGradients: NeuronIntegratedGradients,
}
_CAPTUMS = {ours: theirs for theirs, ours in _OURS.items()}
_active: list[CaptumPatch] = []
_igfasts_own: set[tuple[str, str]] = set()  # names, by module, that were igfast's classes before the first patch


@dataclass
class CaptumPatch:
    """What one call of `patch_captum` replaced; `undo` puts it back, as does leaving it as a context manager.

    Attributes:
        replaced: the names that igfast's classes were put under, "module.name" or "module.name[key]".
        not_replaced: what still refers to Captum's classes, and why it was left.
    """

    replaced: list[str] = field(default_factory=list)
    not_replaced: list[str] = field(default_factory=list)
    _undo: list[tuple[Any, Any, type]] = field(default_factory=list, repr=False)

    def __enter__(self) -> CaptumPatch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Puts Captum's classes back; a second call does nothing.

        So do the names that modules got from Captum in the meantime. A name that was bound to something else since is
        left alone.
        """
        for container, key, theirs in reversed(self._undo):
            if _get(container, key) is _OURS[theirs]:
                container[key] = theirs
        self._undo.clear()
        if self in _active:
            _active.remove(self)
        if not _active:
            for module in _modules():
                for name, value in list(vars(module).items()):
                    for ours, theirs in _CAPTUMS.items():
                        if value is ours and (module.__name__, name) not in _igfasts_own:
                            vars(module)[name] = theirs

    def _replace(self, container: Any, key: Any, label: str) -> None:
        theirs = container[key]
        container[key] = _OURS[theirs]
        self._undo.append((container, key, theirs))
        self.replaced.append(label)


def patch_captum() -> CaptumPatch:
    """Puts igfast's three classes in the place of Captum's, everywhere in this process.

    In Captum's own modules, and under every name in every loaded module that refers to one of them: after
    `from captum.attr import IntegratedGradients`, in whichever file, that name is igfast's class. Modules that are
    imported later get it from Captum. Lists and dicts at the top level of a module are looked through as well.

    Classes that already derive from Captum's, instances that exist, and references inside of tuples, functions and
    other objects cannot be replaced; the first two kinds of these that can be found are in `not_replaced`. Calling it
    again is harmless and looks through modules loaded since.

    Returns:
        A handle: `undo()`, or `with patch_captum(): ...`.
    """
    patch = CaptumPatch()
    if not _active:
        _igfasts_own.clear()
    for module in _modules():
        for name, value in list(vars(module).items()):
            if not _active and any(value is ours for ours in _CAPTUMS):
                _igfasts_own.add((module.__name__, name))
            label = f"{module.__name__}.{name}"
            if _is_captums(value):
                patch._replace(vars(module), name, label)
            elif type(value) in (list, dict):
                for key in list(value) if type(value) is dict else range(len(value)):
                    if _is_captums(value[key]):
                        patch._replace(value, key, f"{label}[{key!r}]")
            elif type(value) in (tuple, set, frozenset) and any(_is_captums(element) for element in value):
                patch.not_replaced.append(f"{label}: a {type(value).__name__} cannot be changed")
    for theirs, ours in _OURS.items():
        subclasses: list[type] = theirs.__subclasses__()
        for derived in subclasses:
            if derived is not ours:
                patch.not_replaced.append(f"{derived.__module__}.{derived.__qualname__}: derives from Captum's class")
    _active.append(patch)
    return patch


def unpatch_captum() -> None:
    """Undoes every call of `patch_captum` that is in effect."""
    for patch in reversed(_active.copy()):
        patch.undo()


def _is_captums(value: object) -> bool:
    return any(value is theirs for theirs in _OURS)  # by identity: objects of lazy modules react to being looked at


def _get(container: Any, key: Any) -> Any:
    try:
        return container[key]
    except (KeyError, IndexError):
        return None


def _modules() -> list[ModuleType]:
    """The loaded modules, all but igfast's own."""
    modules = [m for m in sys.modules.copy().values() if isinstance(m, ModuleType) and isinstance(vars(m), dict)]
    return [m for m in modules if m.__name__.split(".")[0] != "igfast"]
