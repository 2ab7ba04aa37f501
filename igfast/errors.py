"""Every error and warning that igfast raises itself.

Each error is an `IgfastError` and a built-in error of its kind. Each error also derives from what Captum 0.9 raises in
the same place, often `AssertionError`, so that handlers written for Captum keep working.
"""

from __future__ import annotations

import sys
import warnings


class IgfastError(Exception):
    """Base of all errors that igfast raises itself; a model's own errors pass through unchanged."""

    def __str__(self) -> str:
        # KeyError, a base of OutputTypeError, would print the message in quotes.
        return Exception.__str__(self)


class ArgumentError(IgfastError, ValueError, AssertionError):
    """An argument has a value that is not allowed."""


class ArgumentTypeError(IgfastError, TypeError, AssertionError):
    """An argument has a type that is not allowed."""


class InputError(ArgumentError, RuntimeError):
    """A tensor in `inputs` or `additional_forward_args` cannot be attributed or does not fit the others."""


class InputTypeError(ArgumentTypeError, RuntimeError):
    """`inputs` is not a tensor or a tuple of tensors of a type that has path points."""


class BaselineError(ArgumentError, IndexError):
    """A baseline has the wrong shape or the tuple of baselines the wrong length."""


class TargetError(ArgumentError, IndexError, RuntimeError):
    """`target` does not select one number per example from the output."""


class TargetTypeError(ArgumentTypeError, RuntimeError):
    """`target` is not an int, a tuple of ints, a tensor of ints or a list of either."""


class OutputError(IgfastError, RuntimeError, AssertionError, IndexError):
    """The output of `forward_func` has no gradient with respect to the inputs, or is not one number per example."""


class OutputTypeError(OutputError, TypeError, AttributeError, KeyError):
    """`forward_func` returned something other than a tensor."""


class LayerError(IgfastError, ValueError, AssertionError, RuntimeError):
    """A layer is not reached, is called several times, or has inputs or outputs that no path can interpolate."""


class SelectorError(ArgumentError, IndexError):
    """`neuron_selector` does not select one number per example from the layer."""


class SelectorTypeError(ArgumentTypeError):
    """`neuron_selector` is not an int, a tuple of ints and slices, or a function."""


class KernelsError(IgfastError, ImportError):
    """The compiled operators are missing or were built for another version of torch."""


class LeanError(IgfastError, RuntimeError):
    """`lean=True` was passed, and the model does not support lean execution."""


class OnePassError(IgfastError, RuntimeError):
    """`one_pass=True` was passed, and one forward pass does not score the tokens of an answer as several do."""


class IgfastMemoryError(IgfastError, MemoryError, RuntimeError):
    """The attribution does not fit in the allowed memory, even with one path point at a time."""


class CommandError(IgfastError, ValueError):
    """A command cannot start with what it was given; the message names the option."""


class ExplanationFileError(IgfastError, ValueError):
    """A file or a text does not hold a whole `igfast.Explanation` of a version that this igfast reads."""


class MissingPackageError(IgfastError, ModuleNotFoundError):
    """A package that is needed for this and not for attributions is not installed."""

    @classmethod
    def of(cls, what: str, error: ModuleNotFoundError, extra: str = "explain") -> MissingPackageError:
        """Returns the error for a failed import; `what` says what the package is needed for."""
        return cls(f'{error.name} is needed {what}: pip install "igfast[{extra}]"')


class IgfastWarning(UserWarning):
    """Something that changes the result or its cost and that the caller may not expect."""


class ConvergenceWarning(IgfastWarning):
    """Attributions did not reach the tolerance that was asked for, or of a language model are far from completeness."""


def warn(message: str, category: type[IgfastWarning] = IgfastWarning) -> None:
    """Issues one warning that points at the first line outside igfast and Captum."""
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in {"igfast", "captum"}:
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)
