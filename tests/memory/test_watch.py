"""The budget on a GPU, kept by a look after each operation; here the CPU's pool counts in place of the GPU's."""

import pytest
import torch
from torch import nn

import igfast
from igfast.memory import scope
from igfast.memory.watch import AllocationWatch
from tests.oracle import relative_difference

_C = pytest.importorskip("igfast._C")


@pytest.fixture
def counted(monkeypatch):
    """Lets the CPU stand for a GPU whose allocator is the pool."""
    if not _C.enter_host_pool():
        pytest.skip("no pool here")
    in_use, peak = _C.host_pool_bytes_in_use, _C.host_pool_peak_in_use
    counts = {"allocated_bytes": {"all": {}}}

    def stats(device):
        counts["allocated_bytes"]["all"] = {"current": in_use(), "peak": peak()}
        return counts

    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", stats)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: in_use())
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak())
    monkeypatch.setitem(scope._SCOPES, "cpu", scope._cuda_scope)
    yield
    _C.leave_host_pool()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("earlier", [0, 2**28])
@pytest.mark.parametrize("options", [{}, {"internal_batch_size": 50}, {"internal_batch_size": 3}])
@pytest.mark.parametrize("lean", [True, False])
def test_chunks_stay_within_the_budget(counted, lean, options, earlier, recwarn):
    torch.empty(earlier, dtype=torch.uint8)  # a peak of the process above all that follows
    x, budget = torch.randn(1, 3, 128, 128), 40 * 2**20
    wanted = igfast.IntegratedGradients(network()).attribute(x, target=1)
    explainer = igfast.IntegratedGradients(network(), lean=lean, memory_budget=budget)
    got, report = explainer.attribute(x, target=1, return_report=True, **options)
    assert relative_difference(got, wanted) <= 1e-5
    assert report.peak_bytes <= budget == report.budget_bytes
    assert report.chunks[1] == 1  # the first, which is measured
    assert 1 < max(report.chunks) <= options.get("internal_batch_size", 50)
    assert not recwarn.list


def test_a_later_chunk_that_does_not_fit_is_halved(counted):
    class Hungry(nn.Module):
        """Takes room for eight rows where there are more than two."""

        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x):
            room = torch.zeros(8 * 32 * 128 * 128 * (len(x) > 2))
            return self.network(x) + 0 * room.sum()

    x = torch.randn(1, 3, 128, 128)
    wanted = igfast.IntegratedGradients(network()).attribute(x, target=1)
    explainer = igfast.IntegratedGradients(Hungry(), memory_budget="24MiB")
    with pytest.warns(igfast.IgfastWarning, match="out of memory, so .* chunks of 1 instead of 3 rows .*memory_budget"):
        got = explainer.attribute(x, target=1)
    assert relative_difference(got, wanted) <= 1e-5


@pytest.mark.parametrize("call", ["first", "second"])
def test_a_batch_is_not_taken_for_a_row(counted, call):
    """The first chunk's peak decides on the others': what the whole batch takes beforehand is not in it."""
    x = torch.randn(8, 3, 128, 128)
    explainer = igfast.IntegratedGradients(network(), memory_budget="80MiB")
    if call == "second":
        explainer.attribute(x, target=1, n_steps=4)
    _, report = explainer.attribute(x, target=1, n_steps=4, return_report=True)
    assert max(report.chunks) >= 5
    assert report.peak_bytes <= 80 * 2**20


def test_a_compiled_model_stays_compiled(counted):
    torch._dynamo.reset()  # other tests may have used up the recompilations of a module's code
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    model, x = torch.compile(network(), backend=backend), torch.randn(1, 3, 32, 32)
    igfast.IntegratedGradients(model, memory_budget="1GiB").attribute(x, target=1)
    n_before = len(compilations)
    model(torch.randn(1, 3, 40, 40))
    assert len(compilations) == n_before + 1


def test_higher_order_operators_run(counted):
    class Branches(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 1e9, lambda y: y.sin(), lambda y: y * y, (x,)).sum(1)

    x = torch.randn(2, 3)
    got = igfast.IntegratedGradients(Branches(), memory_budget="1GiB").attribute(x, internal_batch_size=2)
    torch.testing.assert_close(got, x * x)


def test_a_row_that_does_not_fit_is_an_error(counted):
    explainer = igfast.IntegratedGradients(network(), memory_budget="1MiB")
    with pytest.warns(igfast.IgfastWarning), pytest.raises(igfast.IgfastMemoryError, match="allowed on cpu"):
        explainer.attribute(torch.randn(1, 3, 128, 128), target=1)


def test_memory_that_an_operation_frees_again_counts():
    counts = iter([(10, 10), (20, 90), (20, 90)])
    watch = AllocationWatch(lambda: next(counts), limit=50)
    with watch, pytest.raises(torch.OutOfMemoryError, match="memory_budget"):
        torch.ones(1)
    assert watch.highest == 90
    with watch:
        torch.ones(1)  # the same peak is no news
