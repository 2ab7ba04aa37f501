"""Replaces Captum's classes by igfast's in code that imports Captum."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from igfast.attr import (
    GradientShap,
    IntegratedGradients,
    LayerGradientShap,
    LayerIntegratedGradients,
    NeuronGradientShap,
    NeuronIntegratedGradients,
)
from igfast.attr.stands_in import in_captums_place
from igfast.llm import LLMGradientAttribution

_CLASSES: tuple[Any, ...] = (
    IntegratedGradients,
    LayerIntegratedGradients,
    NeuronIntegratedGradients,
    GradientShap,
    LayerGradientShap,
    NeuronGradientShap,
    LLMGradientAttribution,
)
OURS: dict[type, type] = {ours.stands_for: ours for ours in _CLASSES}  # by Captum's classes as they were at import
_CAPTUMS = {ours: theirs for theirs, ours in OURS.items()}
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
        if self not in in_captums_place:
            return
        for container, key, theirs in reversed(self._undo):
            if _get(container, key) is OURS[theirs]:
                container[key] = theirs
        in_captums_place.remove(self)
        if not in_captums_place:
            for module in _modules():
                for name, value in list(vars(module).items()):
                    for ours, theirs in _CAPTUMS.items():
                        if value is ours and (module.__name__, name) not in _igfasts_own:
                            vars(module)[name] = theirs

    def _leave(self, label: str) -> None:
        if label not in self.not_replaced:  # a module may be loaded under two names
            self.not_replaced.append(label)

    def _replace(self, container: Any, key: Any, label: str) -> None:
        theirs = container[key]
        container[key] = OURS[theirs]
        self._undo.append((container, key, theirs))
        self.replaced.append(label)


def patch_captum() -> CaptumPatch:
    """Puts igfast's classes in the place of Captum's, everywhere in this process.

    Every name in every loaded module that refers to one of Captum's classes then refers to igfast's. An example is the
    name after `from captum.attr import IntegratedGradients`, in whichever file. Modules imported later get igfast's
    classes from Captum. Lists and dicts at the top level of a module are searched too.

    Existing subclasses and instances of Captum's classes cannot be replaced; `isinstance` and `issubclass` take them
    for what they are. The module of a subclass keeps its name for Captum's class, as the subclass may call it. Nor can
    references inside tuples, functions and other objects be replaced. `not_replaced` lists the subclasses, their
    modules' names, and tuples and sets at the top level of modules. A second call is harmless and covers modules loaded
    since.

    Returns:
        A handle: `undo()`, or `with patch_captum(): ...`.
    """
    patch = CaptumPatch()
    derived = [(theirs, one) for theirs, ours in OURS.items() for one in _subclasses(theirs) if one is not ours]
    kept = {(one.__module__, theirs) for theirs, one in derived}
    if not in_captums_place:
        _igfasts_own.clear()
    for module in _modules():
        for name, value in list(vars(module).items()):
            if not in_captums_place and any(value is ours for ours in _CAPTUMS):
                _igfasts_own.add((module.__name__, name))
            label = f"{module.__name__}.{name}"
            if _is_captums(value):
                if (module.__name__, value) in kept:
                    patch._leave(f"{label}: a subclass there may call Captum's class by this name")
                else:
                    patch._replace(vars(module), name, label)
            elif type(value) in (list, dict):
                for key in list(value) if type(value) is dict else range(len(value)):
                    if _is_captums(value[key]):
                        patch._replace(value, key, f"{label}[{key!r}]")
            elif type(value) in (tuple, set, frozenset) and any(_is_captums(element) for element in value):
                patch._leave(f"{label}: a {type(value).__name__} cannot be changed")
    for _, one in derived:
        patch._leave(f"{one.__module__}.{one.__qualname__}: derives from Captum's class")
    in_captums_place.append(patch)
    return patch


def unpatch_captum() -> None:
    """Undoes every call of `patch_captum` that is in effect."""
    for patch in reversed(in_captums_place.copy()):
        patch.undo()


def _subclasses(theirs: type) -> list[type]:
    """Returns the direct subclasses of a class of Captum's."""
    found: list[type] = type.__subclasses__(theirs)
    return found


def _is_captums(value: object) -> bool:
    return any(value is theirs for theirs in OURS)  # by identity: hash and == may trigger a lazy module's import


def _get(container: Any, key: Any) -> Any:
    try:
        return container[key]
    except (KeyError, IndexError):
        return None


def _modules() -> list[ModuleType]:
    modules = [m for m in sys.modules.copy().values() if isinstance(m, ModuleType) and isinstance(vars(m), dict)]
    return [m for m in modules if m.__name__.split(".")[0] != "igfast"]
