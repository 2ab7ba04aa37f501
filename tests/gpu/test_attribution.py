"""Attributions on a GPU: those of the CPU, on any stream, in any layout, and when memory runs out."""

import pytest
import torch
from torch import nn

import igfast
from tests.oracle import relative_difference


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, groups=2),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 5),
    ).to(dtype).eval()  # fmt: skip


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("method", ["gausslegendre", "riemann_trapezoid"])
def test_equals_the_cpu(method, lean):
    x = torch.randn(3, 3, 20, 18, dtype=torch.float64)
    target = torch.tensor([0, 3, 4])
    wanted, wanted_delta = igfast.IntegratedGradients(network()).attribute(
        x, target=target, method=method, return_convergence_delta=True
    )
    got, delta = igfast.IntegratedGradients(network().cuda(), lean=lean).attribute(
        x.cuda(), target=target.cuda(), method=method, return_convergence_delta=True
    )
    assert relative_difference(got.cpu(), wanted) <= 1e-12
    torch.testing.assert_close(delta.cpu(), wanted_delta, rtol=1e-6, atol=1e-12)


def test_any_chunk_and_layout_gives_the_same():
    explainer = igfast.IntegratedGradients(network().cuda(), lean=True)
    x = torch.randn(2, 3, 20, 18, dtype=torch.float64, device="cuda")
    wanted = igfast.IntegratedGradients(network().cuda(), lean=False).attribute(x, target=1)
    for size in (1, 3, 100):
        for same in (x, x.contiguous(memory_format=torch.channels_last), x.repeat(1, 1, 1, 2)[..., :18]):
            got = explainer.attribute(same, target=1, internal_batch_size=size)
            assert relative_difference(got, wanted) <= 1e-12


def test_another_stream():
    explainer = igfast.IntegratedGradients(network().cuda(), lean=True)
    x = torch.randn(2, 3, 20, 18, dtype=torch.float64, device="cuda")
    wanted = igfast.IntegratedGradients(network().cuda(), lean=False).attribute(x, target=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = explainer.attribute(x, target=1)
    stream.synchronize()
    assert relative_difference(got, wanted) <= 1e-12


def test_lean_execution_takes_the_kernels():
    x = torch.randn(2, 3, 20, 18, dtype=torch.float64, device="cuda")
    _, report = igfast.IntegratedGradients(network().cuda(), lean=True).attribute(x, target=1, return_report=True)
    assert "relu" in str(report)
    assert "no kernel" not in str(report)


@pytest.mark.parametrize(("side", "is_small"), [(20, True), (256, False)])
def test_small_calls_run_plainly(side, is_small):
    x = torch.randn(2, 3, side, side, device="cuda")
    _, report = igfast.IntegratedGradients(network(torch.float32).cuda()).attribute(x, target=1, return_report=True)
    assert ("plain autograd keeps little" in report.lean.off_because) is is_small


@pytest.fixture
def precise_convolutions():
    """cuDNN's default computes float32 convolutions in 10 bits, by a kernel that depends on the free memory."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


def test_memory_that_runs_out_halves_the_chunks(precise_convolutions):
    wide = nn.Sequential(nn.Conv2d(3, 512, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).cuda()
    x = torch.randn(1, 3, 256, 256, device="cuda")
    wanted = igfast.IntegratedGradients(wide).attribute(x, target=1, n_steps=16, internal_batch_size=1)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1.5 * 2**30 / total))
    try:
        with pytest.warns(UserWarning, match="out of memory, so the attribution goes on with chunks of"):
            got = igfast.IntegratedGradients(wide).attribute(x, target=1, n_steps=16, internal_batch_size=16)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert relative_difference(got, wanted) <= 1e-5


@pytest.mark.parametrize("is_peak_of_process", [True, False])
@pytest.mark.parametrize("options", [{}, {"internal_batch_size": 16}])
@pytest.mark.parametrize("lean", [True, False])
def test_a_budget_is_kept(lean, options, is_peak_of_process, precise_convolutions, recwarn):
    wide = nn.Sequential(nn.Conv2d(3, 256, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).cuda()
    x = torch.randn(1, 3, 256, 256, device="cuda")
    wanted = igfast.IntegratedGradients(wide).attribute(x, target=1, n_steps=16, internal_batch_size=1)
    del_after = None if is_peak_of_process else torch.empty(2**31, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    del del_after
    torch.cuda.empty_cache()
    before, budget = torch.cuda.memory_allocated(), 900 * 2**20
    if is_peak_of_process:
        torch.cuda.reset_peak_memory_stats()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 2 * budget) / total))
    try:
        explainer = igfast.IntegratedGradients(wide, lean=lean, memory_budget=budget)
        got, report = explainer.attribute(x, target=1, n_steps=16, return_report=True, **options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert relative_difference(got, wanted) <= 1e-5
    assert report.peak_bytes <= budget
    assert max(report.chunks) > 1
    if is_peak_of_process:
        assert torch.cuda.max_memory_allocated() - before <= budget
    assert not recwarn.list


class Fails(nn.Module):
    """Draws from the GPU's generator, and runs out of memory on one pass with a gradient."""

    def __init__(self, at):
        super().__init__()
        self.network, self.at, self.passes = network(), at, 0

    def forward(self, x):
        self.passes += torch.is_grad_enabled()
        noise = torch.rand(1, device=x.device, dtype=x.dtype)
        if torch.is_grad_enabled() and self.passes == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.network(x) * (1 + 0 * noise)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_chunk_that_did_not_fit_is_repeated_from_the_same_random_state(at):
    x = torch.randn(2, 3, 20, 18, dtype=torch.float64, device="cuda")
    options = {"target": 1, "n_steps": 20, "internal_batch_size": 8}
    wanted = igfast.IntegratedGradients(network().cuda()).attribute(x, **options)
    torch.cuda.manual_seed(0)
    with pytest.warns(igfast.IgfastWarning, match="out of memory, so .* chunks of 4 instead of 8 rows"):
        got = igfast.IntegratedGradients(Fails(at).cuda(), lean=True).attribute(x, **options)
    assert relative_difference(got, wanted) <= 1e-12
