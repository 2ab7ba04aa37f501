"""Small float64 networks of many architectures, random but with calibrated batch norm, each with an input."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.models import Logits, calibrate_batch_norm

IMAGE = (2, 3, 32, 32)


def _conv(inputs, outputs, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


class Residual(nn.Module):
    """conv, norm, in-place relu, conv, norm, in-place add, in-place relu."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = _conv(channels, channels), _conv(channels, channels)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)])
        self.relu = nn.ReLU(inplace=True)  # one module, called twice

    def forward(self, x):
        out = self.relu(self.norms[0](self.first(x)))
        out = self.norms[1](self.second(out))
        out += x
        return self.relu(out)


def resnet():
    stem = [nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, Residual(8), Residual(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def vgg():
    features = [_conv(3, 8), nn.ReLU(True), nn.MaxPool2d(2), _conv(8, 16), nn.ReLU(True), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, 5)]
    return nn.Sequential(*features, *head)


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), _conv(n, 4, bias=False)) for n in (3, 7, 11)
        )
        self.head = nn.Linear(15, 5)

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(F.avg_pool2d(torch.cat(features, 1), 8).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(_conv(3, 6), nn.BatchNorm2d(6), nn.LeakyReLU(0.2, inplace=True))
        self.bottom = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(6, 8, 3), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = _conv(12, 5, 1)

    def forward(self, x):
        skip = self.down(x)
        up = self.up(self.bottom(F.max_pool2d(skip, 2)))
        up = up + F.interpolate(F.avg_pool2d(skip, 2), scale_factor=2, mode="bilinear")
        return self.head(torch.cat([skip, up], 1)).amax((2, 3))


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


def mobilenet():
    depthwise = [_conv(8, 8, groups=8, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)]
    stem = [_conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.Hardswish()]
    return nn.Sequential(*stem, *depthwise, SqueezeExcite(8), _conv(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class BiLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 5, bidirectional=True, batch_first=True), nn.Linear(10, 5)

    def forward(self, x):
        return self.head(self.lstm(x)[0].amax(1))


def signal_cnn():
    stem = [nn.Conv1d(3, 6, 5, 2), nn.BatchNorm1d(6), nn.ReLU()]
    pools = [nn.MaxPool1d(2), nn.AvgPool1d(2), nn.ReplicationPad1d(1)]
    return nn.Sequential(
        *stem, *pools, nn.Conv1d(6, 5, 3), nn.Hardtanh(-0.5, 0.5), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    )


def volume_cnn():
    layers = [nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Threshold(0.1, 0.0), nn.MaxPool3d(2), nn.AvgPool3d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(5))


class Shared(nn.Module):
    """One convolution and one activation, called three times."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared, self.head = _conv(3, 6), _conv(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = F.relu(self.shared(x)) + x
        return self.head(x.mean((2, 3)))


class InPlace(nn.Module):
    """In-place additions after activations, and an in-place activation of a view."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = _conv(3, 6), _conv(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        x = self.first(x).relu_()
        y = self.second(x)
        y += 0.3
        F.relu(y[:, :3], inplace=True)
        y = y + x
        return self.head(y.flatten(2).mean(2))


class Functional(nn.Module):
    """Calls of functions and methods only, with parameters of its own and a weight that is computed."""

    def __init__(self):
        super().__init__()
        self.kernel, self.matrix = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.randn(6, 5) / 3)
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x):
        unit = self.kernel / self.kernel.flatten(1).norm(dim=1).view(6, 1, 1, 1)
        x = torch.relu(torch.conv2d(x, unit, None, 1, 1)) + torch.conv2d(x, self.kernel, padding=1).relu()
        x = torch.max_pool2d(x, 2).permute(0, 2, 3, 1) * self.scale
        return (x @ self.matrix).mean((1, 2)) + torch.addmm(self.matrix[0], x.mean((1, 2)), self.matrix)


class Differentiates(nn.Module):
    """Forces from an energy: the gradient with a graph, inside the forward pass."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 1))

    def forward(self, x):
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        with torch.enable_grad():
            (force,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return force


class Functorch(nn.Module):
    """The same by function transforms, which no PyTorch function call announces."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 1))

    def forward(self, x):
        return torch.func.grad(lambda points: self.energy(points).sum())(x)


class Scripted(nn.Module):
    """A scripted part, which no mode sees into, between others."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 6), nn.ReLU())
        self.body = torch.jit.script(nn.Sequential(_conv(6, 6), nn.ReLU(), nn.MaxPool2d(2)))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def _tiny(**options):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return {**sizes, "num_labels": 5, **options}


def _vision(name):
    import transformers as tf

    if name == "vit":
        return Logits(tf.ViTForImageClassification(tf.ViTConfig(**_tiny(image_size=32, patch_size=8))))
    if name == "convnext":
        config = tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=5, patch_size=4)
        return Logits(tf.ConvNextForImageClassification(config))
    config = tf.SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4)
    config.num_labels = 5
    return Logits(tf.SwinForImageClassification(config))


class Embedded(nn.Module):
    """A transformers text model as a function of its embeddings."""

    def __init__(self, model, head):
        super().__init__()
        self.model, self.head = model, head

    def forward(self, embeddings):
        return self.head(self.model(inputs_embeds=embeddings).last_hidden_state.mean(1))


def _text(name):
    import transformers as tf

    head = nn.Linear(16, 5)
    if name == "bert":
        return Embedded(tf.BertModel(tf.BertConfig(**_tiny(vocab_size=50))), head)
    if name == "gpt2":
        return Embedded(tf.GPT2Model(tf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50)), head)
    config = tf.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50)
    return Embedded(tf.T5EncoderModel(config), head)


_MODULES = {
    "resnet": (resnet, IMAGE),
    "vgg, in-place relu": (vgg, IMAGE),
    "densenet": (DenseNet, IMAGE),
    "unet": (UNet, IMAGE),
    "mobilenet": (mobilenet, IMAGE),
    "bilstm": (BiLSTM, (2, 7, 6)),
    "signal cnn": (signal_cnn, (2, 3, 40)),
    "volume cnn": (volume_cnn, (2, 1, 9, 10, 11)),
    "shared modules": (Shared, IMAGE),
    "in-place adds": (InPlace, IMAGE),
    "functional": (Functional, IMAGE),
    "scripted": (Scripted, IMAGE),
    "swin": (lambda: _vision("swin"), IMAGE),
    "convnext": (lambda: _vision("convnext"), IMAGE),
    "vit": (lambda: _vision("vit"), IMAGE),
    "bert": (lambda: _text("bert"), (2, 9, 16)),
    "gpt2": (lambda: _text("gpt2"), (2, 9, 16)),
    "t5 encoder": (lambda: _text("t5"), (2, 9, 16)),
    "differentiates": (Differentiates, (4, 6)),
    "functorch": (Functorch, (4, 6)),
}
FALLING_BACK = ("differentiates", "functorch")
TAKING_LEAN = tuple(name for name in _MODULES if name not in FALLING_BACK)


def build(name):
    """The function, an input and a baseline."""
    torch.manual_seed(0)
    make, shape = _MODULES[name]
    module = make().double()
    x, baseline = torch.randn(shape, dtype=torch.float64), 0.1 * torch.randn(shape, dtype=torch.float64)
    calibrate_batch_norm(module, torch.randn(shape, dtype=torch.float64))
    return module, x, baseline
