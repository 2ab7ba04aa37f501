"""Replaces Captum's classes by igfast's in code that imports Captum."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import captum.attr

from igfast.attr import (
    GradientShap,
    IntegratedGradients,
    LayerGradientShap,
    LayerIntegratedGradients,
    NeuronGradientShap,
    NeuronIntegratedGradients,
)
from igfast.llm import LLMGradientAttribution

# The keys are Captum's classes when igfast was imported, before any patch: the bases of igfast's.
_OURS: dict[type, type] = {
    captum.attr.IntegratedGradients: IntegratedGradients,
    captum.attr.LayerIntegratedGradients: LayerIntegratedGradients,
    captum.attr.NeuronIntegratedGradients: NeuronIntegratedGradients,
    captum.attr.GradientShap: GradientShap,
    captum.attr.LayerGradientShap: LayerGradientShap,
    captum.attr.NeuronGradientShap: NeuronGradientShap,
    captum.attr.LLMGradientAttribution: LLMGradientAttribution,
}
_CAPTUMS = {ours: theirs for theirs, ours in _OURS.items()}
_active: list[CaptumPatch] = []
_igfasts_own: set[tuple[str, str]] = set()  # (module, name) that referred to igfast's classes before the first patch


@dataclass(eq=False)
class CaptumPatch:
    """What one call of `patch_captum` replaced; `undo`, or the end of a `with` block, puts Captum's classes back.

    Attributes:
        replaced: the names that now refer to igfast's classes, "module.name" or "module.name[key]".
        not_replaced: the names that still refer to Captum's classes, and why.
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

        When no other patch is active, names that were bound to igfast's classes in the meantime are put back too, since
        they cannot be told from names bound through Captum. A name that was bound to something else is left alone.
        """
        if self not in _active:
            return
        for container, key, theirs in reversed(self._undo):
            if _get(container, key) is _OURS[theirs]:
                container[key] = theirs
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
    """Puts igfast's classes in the place of Captum's, everywhere in this process.

    Every name in every loaded module that refers to one of Captum's classes then refers to igfast's. An example is the
    name after `from captum.attr import IntegratedGradients`, in whichever file. Modules imported later get igfast's
    classes from Captum. Lists and dicts at the top level of a module are searched too.

    Existing subclasses and instances of Captum's classes cannot be replaced. Nor can references inside tuples,
    functions and other objects. `not_replaced` lists the subclasses, and tuples and sets at the top level of modules.
    A second call is harmless and covers modules loaded since.

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
    return any(value is theirs for theirs in _OURS)  # by identity: hash and == may trigger a lazy module's import


def _get(container: Any, key: Any) -> Any:
    try:
        return container[key]
    except (KeyError, IndexError):
        return None


def _modules() -> list[ModuleType]:
    modules = [m for m in sys.modules.copy().values() if isinstance(m, ModuleType) and isinstance(vars(m), dict)]
    return [m for m in modules if m.__name__.split(".")[0] != "igfast"]
