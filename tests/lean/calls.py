"""Calls that lean execution swaps: each as a function of one tensor, with the shape of that tensor."""

import torch
import torch.nn.functional as F
from torch import nn


def _parameter(*shape):
    return nn.Parameter(torch.randn(shape, dtype=torch.float64))


def _norm(n_channels):
    norm = nn.BatchNorm1d(n_channels).double().eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


torch.manual_seed(0)
_W1, _W2, _W3, _B = _parameter(6, 2, 3), _parameter(6, 2, 3, 3), _parameter(6, 2, 3, 3, 3), _parameter(6)
_T2, _T3 = _parameter(4, 3, 3, 3), _parameter(4, 3, 2, 2, 2)
_MATRIX, _SCALE = _parameter(7, 5), _parameter(5)
_N = _norm(4)

IMAGE, VOLUME, SIGNAL, ROWS = (2, 4, 9, 8), (2, 4, 5, 6, 7), (2, 4, 11), (3, 6, 5)

CALLS = {
    "conv1d": (SIGNAL, lambda x: F.conv1d(x, _W1, _B, stride=2, padding=1, groups=2)),
    "conv2d": (IMAGE, lambda x: F.conv2d(x, _W2, _B, 2, 1, 1, 2)),
    "conv2d, dilated": (IMAGE, lambda x: F.conv2d(x, _parameter(3, 4, 3, 2), None, (1, 2), (2, 0), 2)),
    "conv2d, same": (IMAGE, lambda x: F.conv2d(x, _W2, padding="same", groups=2)),
    "conv1d, same, dilated": (SIGNAL, lambda x: F.conv1d(x, _parameter(3, 4, 3), padding="same", dilation=2)),
    "conv2d, same, dilated": (IMAGE, lambda x: F.conv2d(x, _W2, padding="same", dilation=(3, 2), groups=2)),
    "conv2d, valid": (IMAGE, lambda x: F.conv2d(x, _W2, padding="valid", groups=2)),
    "conv2d, depthwise": (IMAGE, lambda x: F.conv2d(x, _parameter(4, 1, 3, 3), padding=1, groups=4)),
    "conv2d, 1x1": (IMAGE, lambda x: F.conv2d(x, _parameter(5, 4, 1, 1))),
    "conv1d, cells left over": (SIGNAL, lambda x: F.conv1d(x, _parameter(3, 4, 2), stride=5)),
    "conv2d, cells left over": (IMAGE, lambda x: F.conv2d(x, _parameter(3, 4, 3, 2), None, (4, 3), (1, 0), (1, 2))),
    "conv3d, cells left over": (VOLUME, lambda x: F.conv3d(x, _parameter(3, 4, 2, 2, 3), stride=(2, 5, 3))),
    "conv3d": (VOLUME, lambda x: F.conv3d(x, _W3, _B, padding=1, groups=2)),
    "conv_transpose1d": (SIGNAL, lambda x: F.conv_transpose1d(x, _parameter(4, 3, 3), stride=2)),
    "conv_transpose2d": (IMAGE, lambda x: F.conv_transpose2d(x, _T2, None, 2, 1, 1)),
    "conv_transpose2d, wide": (IMAGE, lambda x: F.conv_transpose2d(x, _T2, None, 1, 0, (1, 2), 1, (2, 3))),
    "conv_transpose2d, grouped": (IMAGE, lambda x: F.conv_transpose2d(x, _T2, None, 2, 1, 1, 2)),
    "conv_transpose3d": (VOLUME, lambda x: F.conv_transpose3d(x, _T3, stride=2, dilation=2)),
    "linear": (ROWS, lambda x: F.linear(x, _MATRIX, _parameter(7))),
    "linear, one row": ((5,), lambda x: F.linear(x, _MATRIX)),
    "matmul": (ROWS, lambda x: x @ _parameter(5, 7)),
    "mm": ((6, 7), lambda x: x.mm(_MATRIX)),
    "addmm": ((6, 7), lambda x: torch.addmm(_SCALE, x, _MATRIX)),
    "torch.mm": ((6, 7), lambda x: torch.mm(x, mat2=_MATRIX)),
    "mul": (ROWS, lambda x: _SCALE * x),
    "mul, broadcast": ((3, 1, 5), lambda x: x * _parameter(3, 6, 5)),
    "batch_norm": (IMAGE, lambda x: F.batch_norm(x, _N.running_mean, _N.running_var, _N.weight, _N.bias)),
    "batch_norm, rows": ((6, 4), _N),
    "batch_norm, no weight": (VOLUME, lambda x: F.batch_norm(x, _N.running_mean, _N.running_var, eps=0.1)),
    "torch.batch_norm": (
        IMAGE,
        lambda x: torch.batch_norm(x, _N.weight, _N.bias, _N.running_mean, _N.running_var, False, 0.1, 1e-2, False),
    ),
    "relu": (IMAGE, F.relu),
    "torch.relu": (IMAGE, torch.relu),
    "Tensor.relu": (IMAGE, lambda x: x.relu()),
    "relu_": (IMAGE, lambda x: x.clone().relu_()),
    "torch.relu_": (IMAGE, lambda x: torch.relu_(x.clone())),
    "relu, inplace": (IMAGE, lambda x: F.relu(x.clone(), inplace=True)),
    "relu6": (IMAGE, F.relu6),
    "relu6, inplace": (IMAGE, lambda x: F.relu6(x.clone(), inplace=True)),
    "hardtanh": (IMAGE, lambda x: F.hardtanh(x, -0.4, 1.1)),
    "hardtanh_": (IMAGE, lambda x: F.hardtanh_(x.clone(), -0.4, 1.1)),
    "leaky_relu": (IMAGE, lambda x: F.leaky_relu(x, 0.2)),
    "leaky_relu_": (IMAGE, lambda x: F.leaky_relu_(x.clone())),
    "leaky_relu_, steep": (IMAGE, lambda x: F.leaky_relu_(x.clone(), 0.3)),
    "threshold": (IMAGE, lambda x: F.threshold(x, 0.3, -2.0)),
    "threshold_": (IMAGE, lambda x: F.threshold_(x.clone(), 0.3, -2.0)),
    "max_pool1d": (SIGNAL, lambda x: F.max_pool1d(x, 3, 2, 1)),
    "max_pool1d, dilated": (SIGNAL, lambda x: F.max_pool1d(x, 2, 2, 0, 3, True)),
    "max_pool2d": (IMAGE, lambda x: F.max_pool2d(x, 3, 2, 1)),
    "max_pool2d, dilated": (IMAGE, lambda x: F.max_pool2d(x, (2, 3), 1, 1, (3, 2), True)),
    "torch.max_pool2d": (IMAGE, lambda x: torch.max_pool2d(x, [2, 2])),
    "max_pool3d": (VOLUME, lambda x: F.max_pool3d(x, (2, 3, 2), 1, (1, 1, 0), (2, 2, 1))),
    "avg_pool1d": (SIGNAL, lambda x: F.avg_pool1d(x, 3, 2, 1)),
    "avg_pool1d, all arguments": (SIGNAL, lambda x: F.avg_pool1d(x, 3, 2, 1, True, False)),
    "avg_pool2d": (IMAGE, lambda x: F.avg_pool2d(x, 3, padding=1, count_include_pad=False)),
    "avg_pool3d": (VOLUME, lambda x: F.avg_pool3d(x, 2, ceil_mode=True, divisor_override=3)),
    "adaptive_avg_pool2d": (IMAGE, lambda x: F.adaptive_avg_pool2d(x, (3, None))),
    "adaptive_avg_pool3d": (VOLUME, lambda x: F.adaptive_avg_pool3d(x, 2)),
    "pad, reflect": (IMAGE, lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect")),
    "pad, reflect a signal": (SIGNAL, lambda x: F.pad(x, (1, 2), mode="reflect")),
    "pad, reflect a volume": (VOLUME, lambda x: F.pad(x, (1, 2, 3, 0, 1, 1), mode="reflect")),
    "pad, replicate an image": (IMAGE, lambda x: F.pad(x, (1, 2, 3, 0), mode="replicate")),
    "pad, replicate": (VOLUME, lambda x: F.pad(x, (1, 2, 3, 0, 1, 1), mode="replicate")),
    "pad, replicate a signal": (SIGNAL, lambda x: F.pad(x, (1, 2), mode="replicate")),
}

IN_PLACE = {
    "relu_": lambda x: x.relu_(),
    "torch.relu_": lambda x: torch.relu_(x),
    "relu": lambda x: F.relu(x, inplace=True),
    "relu6": lambda x: F.relu6(x, inplace=True),
    "hardtanh": lambda x: F.hardtanh(x, -0.4, 1.1, inplace=True),
    "hardtanh_": lambda x: F.hardtanh_(x, -0.4, 1.1),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2, inplace=True),
    "leaky_relu_": lambda x: F.leaky_relu_(x, 0.2),
    "threshold": lambda x: F.threshold(x, 0.3, -2.0, inplace=True),
    "threshold_": lambda x: F.threshold_(x, 0.3, -2.0),
}
"""Statements that work in place on their argument, each as a function whose result nobody takes."""
