import mmap

import pytest
import torch

import igfast
from igfast import memory

MIB = 2**20


def resident_block(n_bytes):
    """Fresh pages, every one written; malloc may hand out pages that the process already holds."""
    block = mmap.mmap(-1, n_bytes)
    for offset in range(0, n_bytes, mmap.PAGESIZE):
        block[offset] = 1
    return block


def test_peak_memory_sees_what_is_freed_again():
    with memory.peak_memory() as measured:
        resident_block(64 * MIB).close()
    assert 60 * MIB <= measured.over_before <= 100 * MIB


def test_peak_memory_by_polling():
    measured = memory.PeakMemory(memory.resident_bytes(), 0)
    with memory._polling(measured):
        held = resident_block(64 * MIB)
    held.close()
    assert measured.over_before >= 60 * MIB


def test_peak_begins_anew():
    resident_block(128 * MIB).close()
    with memory.peak_memory() as measured:
        pass
    assert measured.over_before <= 16 * MIB


def test_available_bytes():
    assert 0 < memory.available_bytes() < 2**50


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
    assert memory.parse_memory_budget(budget) == wanted


@pytest.mark.parametrize("budget", [0, -1, 0.0, 1.5, -0.5, "", "0", "GiB", "2 G", "-1GiB", "0MiB", "2iB", float("nan")])
def test_budgets_that_are_none(budget):
    with pytest.raises(igfast.ArgumentError, match="memory_budget must be bytes, a size such as"):
        memory.parse_memory_budget(budget)


@pytest.mark.parametrize("budget", [True, [1], torch.tensor(5)])
def test_budgets_of_another_type(budget):
    with pytest.raises(igfast.ArgumentTypeError, match="memory_budget must be bytes"):
        memory.parse_memory_budget(budget)


def test_a_budget_of_none_is_most_of_what_is_free():
    memory._host_memory.cache_clear()
    allowed = memory.allowed_bytes(None, torch.device("cpu"))
    assert 0.5 * memory.available_bytes() < allowed < memory.available_bytes()
    assert memory.allowed_bytes(0.25, torch.device("cpu")) == memory._host_memory(0)[1] // 4


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_ran_out(error, is_it):
    assert memory.is_out_of_memory(error) is is_it
