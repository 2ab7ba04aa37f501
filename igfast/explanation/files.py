"""Writes explanations as JSON or safetensors and reads them, without loss.

Both formats hold the same tree of JSON values. What JSON does not have is an object with one key that names the kind:
{"tuple": [...]}, {"dict": [[key, value], ...]}, {"float": "nan"}, {"tensor": ...}. A tensor is base64 of its bytes in
JSON, and in safetensors the name under which the file has it.
"""

from __future__ import annotations

import base64
import glob
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from igfast.errors import ExplanationFileError
from igfast.packages import needed
from igfast.run.report import Convergence, LeanReport, RunReport

_FORMAT, _VERSION = "igfast.Explanation", 1
_REPORTS = {cls.__name__: cls for cls in (RunReport, LeanReport, Convergence)}
_HEADER = "igfast"
Made = TypeVar("Made")


def to_json(fields: Mapping[str, Any]) -> str:
    """Returns an explanation's fields as JSON text."""
    return json.dumps(_tree(fields, _in_base64), allow_nan=False)


def from_json(text: str, make: Callable[..., Made]) -> Made:
    """Returns what `make` makes of the fields that `to_json` wrote; raises ExplanationFileError."""
    return _made("the text", lambda: json.loads(text), _from_base64, make)


def save(fields: Mapping[str, Any], path: Path) -> None:
    """Writes an explanation's fields to a file."""
    tensors: dict[str, Tensor] = {}

    def keep(tensor: Tensor) -> str:
        name = str(len(tensors))
        # A copy: safetensors refuses tensors that share memory.
        tensors[name] = torch.view_as_real(tensor).clone() if tensor.is_complex() else tensor.clone()
        return name

    header = json.dumps(_tree(fields, keep), allow_nan=False)
    with written(path) as temporary:
        _safetensors().torch.save_file(tensors, temporary, metadata={_HEADER: header})


def load(path: Path, make: Callable[..., Made]) -> Made:
    """Returns what `make` makes of the fields in a file; raises ExplanationFileError and FileNotFoundError."""
    safetensors = _safetensors()
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            header = (opened.metadata() or {}).get(_HEADER, "null")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ExplanationFileError(f"{path} is not a whole file in safetensors' format: {error}") from error
    return _made(str(path), lambda: json.loads(header), lambda described: _from_file(described, tensors), make)


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside a path, and renames that file to the path when the block ends without an error.

    A link stays a link, and what is written to a device (/dev/null, /dev/stdout) goes there.

    Raises:
        IsADirectoryError: the path is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file that can be written")
    is_device = str(path.absolute()).startswith(("/dev/", "/proc/")) or (path.exists() and not path.is_file())
    path = path if is_device else path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = None if is_device else path.parent
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
    try:
        yield temporary
        if is_device:
            with path.open("ab") as device:  # not "wb", which would empty a file that a shell has put there
                device.write(temporary.read_bytes())
        else:
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Removes what a process left that was killed while it wrote a file; nobody else may be writing that file."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _safetensors() -> Any:
    needed("safetensors.torch", "to save and load explanations")
    return needed("safetensors", "to save and load explanations")


# ------------------------------------------------------------------------------------------------- values to JSON


def _tree(fields: Mapping[str, Any], keep: Callable[[Tensor], str]) -> dict[str, Any]:
    return {"format": _FORMAT, "version": _VERSION, "fields": {k: _encoded(v, keep) for k, v in fields.items()}}


def _encoded(value: Any, keep: Callable[[Tensor], str]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        described = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "sha256": hashlib.sha256(bytes_of(tensor)).hexdigest(),
        }
        return {"tensor": {**described, "data": keep(tensor)}}
    if isinstance(value, list):
        return [_encoded(one, keep) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [_encoded(one, keep) for one in value]}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if type(value).__name__ in _REPORTS:
        return {type(value).__name__: _encoded(vars(value), keep)}
    if isinstance(value, Mapping):
        return {"dict": [[_encoded(key, keep), _encoded(one, keep)] for key, one in value.items()]}
    raise TypeError(f"an explanation cannot be written with a {type(value).__name__} in it")


def _in_base64(tensor: Tensor) -> str:
    return base64.b64encode(bytes_of(tensor)).decode()


def bytes_of(tensor: Tensor) -> bytes:
    """Returns the bytes of the numbers of a tensor on the CPU, in the order of its dimensions."""
    flat = tensor.flatten().clone(memory_format=torch.contiguous_format)  # strides of single elements are arbitrary
    return flat.view(torch.uint8).numpy().tobytes()


# ------------------------------------------------------------------------------------------------- and back


def _made(
    name: str, read: Callable[[], Any], find: Callable[[Mapping[str, Any]], Tensor], make: Callable[..., Made]
) -> Made:
    """Returns what `make` makes of a tree's fields; `name` is for messages; `find` returns a described tensor."""
    try:
        tree = read()
        if not isinstance(tree, dict) or tree.get("format") != _FORMAT:
            raise ExplanationFileError(f"{name} does not hold an igfast.Explanation")
        if tree["version"] > _VERSION:
            raise ExplanationFileError(
                f"{name} has version {tree['version']} of the format, and this igfast reads up to {_VERSION}: "
                "a newer igfast wrote it"
            )
        return make(**{key: _decoded(value, find) for key, value in tree["fields"].items()})
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, ExplanationFileError):
            raise
        raise ExplanationFileError(f"{name} is damaged: {type(error).__name__}: {error}") from error


def _decoded(value: Any, find: Callable[[Mapping[str, Any]], Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(one, find) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        tensor = find(content)
        if hashlib.sha256(bytes_of(tensor)).hexdigest() != content["sha256"]:
            raise ValueError("the numbers of a tensor have changed")
        return tensor
    if kind == "float":
        return float(content)
    if kind == "slice":
        return slice(*content)
    if kind == "tuple":
        return tuple(_decoded(one, find) for one in content)
    if kind == "dict":
        return {_decoded(key, find): _decoded(one, find) for key, one in content}
    return _REPORTS[kind](**_decoded(content, find))


def _dtype(described: Mapping[str, Any]) -> torch.dtype:
    dtype = getattr(torch, described["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{dtype} is not a dtype")
    return dtype


def _from_base64(described: Mapping[str, Any]) -> Tensor:
    data = bytearray(base64.b64decode(described["data"], validate=True))
    flat = torch.frombuffer(data, dtype=_dtype(described)) if data else torch.empty(0, dtype=_dtype(described))
    return flat.reshape(described["shape"])


def _from_file(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    found, dtype = tensors[described["data"]], _dtype(described)
    # A copy of complex numbers: in a file they may lie at any multiple of 8 bytes, where PyTorch's kernels crash.
    tensor = torch.view_as_complex(found.clone()) if dtype.is_complex else found
    if tensor.dtype != dtype or list(tensor.shape) != described["shape"]:
        raise ValueError(f"a tensor is {tensor.dtype} {tuple(tensor.shape)}, not {described}")
    return tensor
