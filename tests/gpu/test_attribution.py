"""Attributions on a GPU: those of the CPU, on any stream, in any layout, and when memory runs out."""

import re

import pytest
import torch
from torch import nn

import igfast
from igfast.planner import ChunkPlan
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
    explainer = igfast.IntegratedGradients(network().cuda())
    x = torch.randn(2, 3, 20, 18, dtype=torch.float64, device="cuda")
    wanted = explainer.attribute(x, target=1)
    for size in (1, 3, 100):
        for same in (x, x.contiguous(memory_format=torch.channels_last), x.repeat(1, 1, 1, 2)[..., :18]):
            got = explainer.attribute(same, target=1, internal_batch_size=size)
            assert relative_difference(got, wanted) <= 1e-12


def test_another_stream():
    explainer = igfast.IntegratedGradients(network().cuda())
    x = torch.randn(2, 3, 20, 18, dtype=torch.float64, device="cuda")
    wanted = explainer.attribute(x, target=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = explainer.attribute(x, target=1)
    stream.synchronize()
    assert relative_difference(got, wanted) <= 1e-12


def test_chunks_are_timed_to_their_end(monkeypatch):
    record, seen = ChunkPlan.record, []

    def watched(plan, n_rows, seconds, rows_left):
        seen.append((plan.is_timing(rows_left), torch.cuda.current_stream().query()))
        return record(plan, n_rows, seconds, rows_left)

    monkeypatch.setattr(ChunkPlan, "record", watched)
    x = torch.randn(1, 3, 20, 18, dtype=torch.float64, device="cuda")
    busy = network().cuda()
    busy[-1].register_full_backward_hook(lambda *_: torch.cuda._sleep(10**8))  # cycles
    igfast.IntegratedGradients(busy).attribute(x, target=1, n_steps=40, internal_batch_size=1)
    assert all(done for is_timing, done in seen if is_timing)
    assert any(is_timing for is_timing, _ in seen)


def test_lean_execution_takes_the_kernels():
    x = torch.randn(2, 3, 20, 18, dtype=torch.float64, device="cuda")
    _, report = igfast.IntegratedGradients(network().cuda(), lean=True).attribute(x, target=1, return_report=True)
    assert "relu" in str(report)
    assert "no kernel" not in str(report)


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


X = torch.randn(2, 3, 20, 18, dtype=torch.float64)


def replayed(model, choice, x=X, **options):
    explainer = igfast.IntegratedGradients(model, cuda_graph=choice)
    options = {"target": 1, "n_steps": 40, "internal_batch_size": 2, "return_report": True, **options}
    return explainer.attribute(x.cuda(), **options)


def n_replayed(report):
    found = re.match(r"(\d+) chunks replayed", report.cuda_graph)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("lean", [True, False])
def test_graphs_give_the_same(lean):
    model = network().cuda()
    wanted, _ = replayed(model, False)
    explainer = igfast.IntegratedGradients(model, lean=lean, cuda_graph=True)
    for _ in range(3):
        got, report = explainer.attribute(X.cuda(), target=1, n_steps=40, internal_batch_size=2, return_report=True)
        assert relative_difference(got, wanted) <= 1e-12
        assert n_replayed(report) > 0


def test_graphs_on_another_stream_and_under_autocast():
    model = network(torch.float32).cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.autocast("cuda", dtype=torch.bfloat16):
        wanted, _ = replayed(model, False, X.float())
        got, report = replayed(model, True, X.float())
        assert torch.cuda.current_stream() == stream
    stream.synchronize()
    assert n_replayed(report) > 0
    assert relative_difference(got, wanted) <= 1e-2


class Asks(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x):
        return self.network(x) * (1 if x.abs().max().item() >= 0 else 2)


def test_a_model_that_asks_the_gpu_is_not_recorded():
    model = Asks().cuda()
    wanted, _ = replayed(model, False)
    got, report = replayed(model, "auto")
    assert relative_difference(got, wanted) <= 1e-12
    assert n_replayed(report) == 0
    with pytest.raises(igfast.GraphError, match="the model waits for the GPU"):
        replayed(model, True)
    assert torch.cuda.get_sync_debug_mode() == 0
    torch.randn(3, device="cuda")  # whose generator does not take itself to be recording


def test_dropout_in_training_mode_does_not_repeat_itself():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(3 * 20 * 18, 5)).double().cuda().train()
    before = torch.cuda.get_rng_state()
    with pytest.raises(igfast.GraphError, match="the graph gives other gradients than the model"):
        replayed(model, True)
    assert not torch.equal(torch.cuda.get_rng_state(), before)


def test_targets_of_examples_are_recorded_too():
    wanted, _ = replayed(network().cuda(), False, target=[0, 3])
    got, report = replayed(network().cuda(), True, target=[0, 3])
    assert relative_difference(got, wanted) <= 1e-12
    assert n_replayed(report) > 0
