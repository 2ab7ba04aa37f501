import mmap

import pytest
import torch

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


def test_freed_blocks_are_given_back():
    with memory.freed_blocks_kept():
        blocks = [torch.ones(MIB, dtype=torch.uint8) for _ in range(200)]
        before = memory.resident_bytes()
        del blocks
        kept = memory.resident_bytes()
        memory.give_back_freed_blocks()
        after = memory.resident_bytes()
    assert kept > before - 50 * MIB
    assert after < before - 150 * MIB


def test_users_own_thresholds_are_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    monkeypatch.setattr(memory, "_set_thresholds", lambda **thresholds: pytest.fail("they were changed"))
    with memory.freed_blocks_kept():
        pass


def test_thresholds_are_set_back_when_the_last_thread_leaves(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "_set_thresholds", lambda **thresholds: calls.append(thresholds["trim_bytes"]))
    with memory.freed_blocks_kept(), pytest.raises(KeyError), memory.freed_blocks_kept():
        raise KeyError
    assert calls == [2**31 - 1, 2**31 - 1, 64 * MIB]
