"""What `isinstance` says of Captum's explainers while igfast's classes stand in the place of Captum's."""

from __future__ import annotations

from abc import ABCMeta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igfast.patching import CaptumPatch

in_captums_place: list[CaptumPatch] = []  # the patches of `igfast.patch_captum` that are in effect


class StandsIn(ABCMeta):
    """Metaclass of igfast's explainers.

    While `patch_captum` is in effect, names of Captum's classes refer to igfast's. Explainers that were made before,
    and those of subclasses that were defined before, are then instances of igfast's class as they are of Captum's.
    Each class names Captum's as `stands_for`.
    """

    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or isinstance(instance, _stood_for(cls))

    def __subclasscheck__(cls, subclass: type) -> bool:
        return super().__subclasscheck__(subclass) or issubclass(subclass, _stood_for(cls))


def _stood_for(ours: type) -> tuple[type, ...]:
    """Returns the class of Captum's in whose place a class stands now; nothing of other classes, or without a patch."""
    return (vars(ours)["stands_for"],) if in_captums_place and "stands_for" in vars(ours) else ()
