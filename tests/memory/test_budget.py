import pytest
import torch

import igfast
from igfast.memory import budget as budgets
from igfast.memory.machine import available_bytes, total_bytes


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
