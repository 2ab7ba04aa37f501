import pytest
import torch

import igfast
from igfast.memory import budget as budgets
from igfast.memory.machine import available_bytes, total_bytes
from igfast.memory.scope import memory_scope


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [
        (None, None),
        (1, 1),
        (12345, 12345),
        (0.5, 0.5),
        (1.0, 1.0),
        ("7B", 7),
        ("2GiB", 2 * 2**30),
        ("1.5 gib", 3 * 2**29),
        ("512 MB", 512 * 10**6),
        ("3kb", 3000),
        (" 1TiB ", 2**40),
    ],
)
def test_budgets(budget, wanted):
    assert budgets.parse_memory_budget(budget) == wanted


@pytest.mark.parametrize("budget", [0, -1, 0.0, 1.5, -0.5, "", "0", "GiB", "2 G", "-1GiB", "0MiB", "2iB", float("nan")])
def test_budgets_that_are_none(budget):
    with pytest.raises(igfast.ArgumentError, match="memory_budget must be bytes, a size such as"):
        budgets.parse_memory_budget(budget)


@pytest.mark.parametrize("budget", [True, [1], torch.tensor(5)])
def test_budgets_of_another_type(budget):
    with pytest.raises(igfast.ArgumentTypeError, match="memory_budget must be bytes"):
        budgets.parse_memory_budget(budget)


def test_a_budget_of_none_is_most_of_what_is_free():
    budgets._host_memory.cache_clear()
    allowed = budgets.allowed_bytes(None, torch.device("cpu"))
    assert 0.5 * available_bytes() < allowed < available_bytes()
    assert budgets.allowed_bytes(0.25, torch.device("cpu")) == total_bytes() // 4


def test_a_budget_where_none_can_be_kept_is_said():
    model = torch.nn.Linear(3, 2, device="meta")
    with pytest.warns(igfast.IgfastWarning, match="memory_budget cannot be kept on meta"):
        got = igfast.IntegratedGradients(model, memory_budget="1GiB").attribute(
            torch.empty(2, 3, device="meta"), target=1
        )
    assert got.is_meta


def raises(*_):
    raise RuntimeError("CUDAPluggableAllocator does not yet support getDeviceStats")


def test_an_allocator_that_counts_nothing(monkeypatch):
    """As RAPIDS puts one in the place of PyTorch's."""
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 2000))
    for name in ("memory_reserved", "memory_allocated", "memory_stats_as_nested_dict"):
        monkeypatch.setattr(torch.cuda, name, raises)
    assert budgets.allowed_bytes(None, device) == 900
    with memory_scope(device, None) as use:
        assert use.peak() is None
    warns = pytest.warns(igfast.IgfastWarning, match="memory_budget cannot be kept on cuda")
    with warns, memory_scope(device, 500) as use:
        assert use.allowed is None
