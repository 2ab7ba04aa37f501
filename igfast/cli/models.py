"""Loads what commands name: a model by its factory, a device, numbers for channels."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from igfast.errors import CommandError
from igfast.explanation.files import bytes_of


def load_factory(name: str) -> Any:
    """Returns what a factory makes, "package.module:factory"; modules in the working directory are found too.

    Raises:
        CommandError: the name has another form, or there is no such module or factory, or the factory failed.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise CommandError(f"--model must be package.module:factory; got {name!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except (ImportError, AttributeError) as error:
        raise CommandError(f"--model {name}: {error}") from error
    except Exception as error:  # a module may raise anything
        raise CommandError(f"--model {name}: the import failed: {_said(error)}") from error
    if not callable(factory):
        raise CommandError(
            f"--model {name}: {attribute} is a {type(factory).__name__}, not a function that makes a model"
        )
    try:
        return factory() if not isinstance(factory, nn.Module) else factory
    except Exception as error:  # a factory may raise anything
        raise CommandError(f"--model {name}: the factory failed: {_said(error)}") from error


def _said(error: Exception) -> str:
    """Returns an error of the user's code in one line, with the place that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = "" if isinstance(error, SyntaxError) else f" ({frame.filename}, line {frame.lineno})"
    return " ".join(f"{type(error).__name__}: {error}{place}".split())


def load_model(name: str, weights: Path | None, device: str) -> nn.Module:
    """Returns a factory's model in evaluation mode on a device, with weights from a file.

    Args:
        name: as in `load_factory`; the factory returns a `torch.nn.Module`.
        weights: a state dictionary in PyTorch's or safetensors' format.
        device: "cpu", "cuda" and so on.

    Raises:
        CommandError: no module came, or the weights or the device do not fit.
    """
    made = load_factory(name)
    if not isinstance(made, nn.Module):
        raise CommandError(f"--model {name}: the factory returned a {type(made).__name__}, not a torch.nn.Module")
    return prepared(made, weights, device)


def prepared(model: nn.Module, weights: Path | None, device: str) -> nn.Module:
    """Returns a model in evaluation mode on a device, with weights from a file; raises CommandError."""
    what = f"--weights {weights}"
    try:
        if weights is not None:
            model.load_state_dict(_state_of(weights))
        what = f"--device {device}"
        return model.to(torch.device(device)).eval()
    except Exception as error:  # readers of weights raise many kinds of errors
        said = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise CommandError(f"{what}: {type(error).__name__}: {said[:500]}") from error


def _state_of(weights: Path) -> Mapping[str, Any]:
    if weights.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(weights)
    state: Mapping[str, Any] = torch.load(weights, map_location="cpu", weights_only=True)
    return state


def targets_of(name: str, output: Any) -> list[int] | None:
    """Returns the class of each example that --target names: "top1", "top2" and so on, a number, or "none".

    Args:
        name: the option.
        output: of the model, (batch, classes); of any shape for "none".

    Raises:
        CommandError: there is no such class.
    """
    if name == "none":
        return None
    if not isinstance(output, Tensor) or output.dim() != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise CommandError(f"--target {name}: the model returned {got}, not (batch, classes); none is for one number")
    n_classes = output.shape[1]
    if name.startswith("top") and name[3:].isdigit() and 1 <= int(name[3:]) <= n_classes:
        ranked: list[int] = output.topk(int(name[3:]), dim=1).indices[:, -1].tolist()
        return ranked
    if name.isdigit() and int(name) < n_classes:
        return [int(name)] * len(output)
    raise CommandError(f"--target must be top1 to top{n_classes}, a class below {n_classes}, or none; got {name!r}")


def output_of(model: nn.Module, x: Tensor, what: str) -> Any:
    """Returns the model's output, without a graph; raises CommandError, which says what `x` is, if there is none."""
    try:
        with torch.no_grad():
            return model(x.clone())  # some models work in place
    except Exception as error:  # a model may raise anything
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CommandError(f"--model does not take {what}, a tensor {tuple(x.shape)}: {said}") from error


def check_target(name: str) -> None:
    """Raises CommandError for a --target that no model has."""
    if not re.fullmatch(r"none|top[1-9]\d*|\d+", name):
        raise CommandError(f"--target must be top1, top2 and so on, the number of a class, or none; got {name!r}")


def target_of(name: str, output: Any) -> int | None:
    """Returns the class that --target names for the output of one example; raises CommandError."""
    targets = targets_of(name, output)
    return None if targets is None else targets[0]


def numbers_of(option: str, text: str) -> list[float]:
    """Returns numbers between commas; raises CommandError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise CommandError(f"{option} must be numbers between commas; got {text!r}") from None


def digest_of_state(model: nn.Module) -> str:
    """Returns the SHA-256 of a model's parameters and buffers."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(name.encode())
        if isinstance(value, Tensor):
            total.update(bytes_of(value.detach().cpu()))
    return total.hexdigest()


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
