"""Batch norm that overwrites its input, against PyTorch's: bit for bit, in every layout."""

import pytest
import torch
import torch.nn.functional as F

from igfast.ops._load import kernels_loaded

assert kernels_loaded()

LAYOUTS = {
    "contiguous": lambda: torch.randn(2, 64, 40, 40),
    "channels-last": lambda: torch.randn(2, 64, 40, 40).to(memory_format=torch.channels_last),
    "one": lambda: torch.randn(1, 70, 33, 31),
    "one channels-last": lambda: torch.randn(1, 70, 33, 31).to(memory_format=torch.channels_last),
    "volume": lambda: torch.randn(2, 5, 9, 8, 70),
    "volume channels-last": lambda: torch.randn(2, 5, 40, 8, 70).to(memory_format=torch.channels_last_3d),
    "sequence": lambda: torch.randn(2, 64, 3000),
    "table": lambda: torch.randn(300, 64),
    "strided": lambda: torch.randn(2, 64, 40, 80)[..., ::2],
    "no examples": lambda: torch.randn(0, 64, 4, 4),
}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_norm_in_place_has_the_values_of_pytorchs(layout, dtype, affine):
    torch.manual_seed(0)
    x = LAYOUTS[layout]().to(dtype)
    n = x.shape[1]
    mean, variance = torch.randn(n, dtype=dtype), torch.rand(n, dtype=dtype) + 0.5
    weight, bias = (torch.randn(n, dtype=dtype), torch.randn(n, dtype=dtype)) if affine else (None, None)
    wanted = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, 1e-5)
    got = torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)
    assert torch.ops.igfast.lean_batch_norm_(got, weight, bias, mean, variance, 1e-5) is got
    assert torch.equal(got, wanted)


def test_batch_norm_in_place_is_differentiable():
    mean, variance, weight = torch.randn(3), torch.rand(3) + 0.5, torch.randn(3)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (wanted,) = torch.autograd.grad((F.batch_norm(x, mean, variance, weight) ** 2).sum(), x)
    y = torch.ops.igfast.lean_batch_norm_(x * 1, weight, None, mean, variance, 1e-5)
    (got,) = torch.autograd.grad((y**2).sum(), x)
    assert torch.allclose(got, wanted, rtol=1e-5)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        torch.ops.igfast.lean_batch_norm_(x, weight, None, mean, variance, 1e-5)
