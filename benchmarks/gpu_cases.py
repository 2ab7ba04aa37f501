"""What the GPU benchmarks measure: networks, a number of inputs and a dtype for each, and Captum's calls."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import captum.attr
import torch
from torch import Tensor, nn

import igfast
from benchmarks import cases
from igfast.run import integration as _integration

N_STEPS = 50
CAPTUM_STEPS = (2, 5, 10, 25)  # of all inputs in one forward pass; Captum without options takes all 50


def _images(make: Callable[..., tuple[nn.Module, Tensor]], side: int) -> tuple[nn.Module, tuple[int, ...]]:
    return make()[0], (3, side, side)


# Each returns a network and the shape of one input; a text is (tokens,).
NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "ResNet-50, 224x224": partial(_images, cases.resnet50, 224),
    "ResNet-50, 1024x1024": partial(_images, cases.resnet50, 1024),
    "ConvNeXt-T, 224x224": partial(_images, cases.convnext, 224),
    "ConvNeXt-T, 1024x1024": partial(_images, cases.convnext, 1024),
    "ViT-B/16, 224x224": partial(_images, cases.vit, 224),
    "BERT-base, 128 tokens": lambda: (cases.bert(batch=1, tokens=8)[0], (128,)),
    "BERT-base, 512 tokens": lambda: (cases.bert(batch=1, tokens=8)[0], (512,)),
    "CNN of 5 layers, 32x32": partial(_images, cases.small_cnn, 32),
    "MLP of 6 layers": lambda: (cases.small_mlp()[0], (32,)),
}


@functools.lru_cache(maxsize=1)
def _made(network: str) -> tuple[nn.Module, tuple[int, ...]]:
    return NETWORKS[network]()


@dataclass(frozen=True)
class Workload:
    """A network and its inputs.

    Attributes:
        network: one of `NETWORKS`.
        n_inputs: examples of a call.
        dtype: of the network's weights and of its inputs.
    """

    network: str
    n_inputs: int
    dtype: torch.dtype

    @property
    def is_text(self) -> bool:
        """Whether an embedding layer is attributed."""
        return self.network.startswith("BERT")

    def __str__(self) -> str:
        inputs = "1 input" if self.n_inputs == 1 else f"{self.n_inputs} inputs"
        return f"{self.network}, {inputs}, {N_STEPS} steps, {str(self.dtype).removeprefix('torch.')}"

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> tuple[nn.Module, list[Tensor]]:
        """The network and its inputs there.

        Args:
            device: where to.
            dtype: to compute in, other than that of the weights; None for that.
        """
        network, shape = _made(self.network)
        moved = copy.deepcopy(network).to(device, self.dtype)
        moved = moved if dtype is None else moved.to(dtype)
        torch.manual_seed(1)
        if self.is_text:
            ids = torch.randint(1000, 30000, (self.n_inputs, *shape), device=device)
            return moved, [ids, torch.ones_like(ids)]
        x = torch.randn(self.n_inputs, *shape).to(device, self.dtype)
        return moved, [x if dtype is None else x.to(dtype)]


def call_of(workload: Workload, network: nn.Module, inputs: list[Tensor]) -> Callable[..., Any]:
    """From a library and options of its constructor to its attribution, which takes options of `attribute`."""
    return partial(cases.text_call if workload.is_text else cases.image_call, network, *inputs)


def reference(workload: Workload, device: torch.device) -> Tensor:
    """The attribution in float64, by plain PyTorch: of the same weights and inputs."""
    call = call_of(workload, *workload.on(device, torch.float64))
    attributions: Tensor = call(igfast, lean=False)(n_steps=N_STEPS)
    return attributions


def relative_error(attributions: Tensor, wanted: Tensor) -> float:
    """The Euclidean norm of the difference over that of what is wanted."""
    return float((attributions.double() - wanted).norm() / wanted.norm())


def rivals(workload: Workload, call: Callable[..., Any], steps: tuple[int, ...] = CAPTUM_STEPS) -> dict[str, Any]:
    """Captum's calls: without options, and with so many steps of all inputs at a time."""
    sizes = [n_steps * workload.n_inputs for n_steps in steps]
    return cases.captum_calls(call, N_STEPS, sizes)


def compiled_call(workload: Workload, device: torch.device, steps: int) -> Callable[[], Any]:
    """Captum's call on a network that is compiled with its parameters frozen, so many steps at a time.

    Of a text classifier the encoder is compiled: Captum's hooks are on the layer before it.
    """
    network, inputs = workload.on(device)
    network.requires_grad_(False)
    if workload.is_text:
        bert: Any = network.model.bert  # type: ignore[union-attr]
        bert.encoder = torch.compile(bert.encoder, dynamic=False)
    else:
        network = torch.compile(network, dynamic=False)  # type: ignore[assignment]
    explain = call_of(workload, network, inputs)(captum.attr)
    return partial(explain, n_steps=N_STEPS, internal_batch_size=steps * workload.n_inputs)


@contextmanager
def layout_kept() -> Iterator[None]:
    """Gives path points the layout of the inputs during the block."""
    before = _integration.may_be_channels_last
    _integration.may_be_channels_last = lambda x: False  # type: ignore[attr-defined]  # noqa: ARG005
    try:
        yield
    finally:
        _integration.may_be_channels_last = before  # type: ignore[attr-defined]
