import torch

from igfast import memory

MIB = 2**20


def test_peak_memory_sees_what_is_freed_again():
    with memory.peak_memory() as measured:
        torch.ones(64 * MIB, dtype=torch.uint8)
    assert 60 * MIB <= measured.over_before <= 100 * MIB


def test_peak_memory_by_polling():
    measured = memory.PeakMemory(memory.resident_bytes(), 0)
    with memory._polling(measured):
        held = torch.ones(64 * MIB, dtype=torch.uint8)
    assert measured.over_before >= 60 * MIB
    assert held.numel() == 64 * MIB


def test_peak_begins_anew():
    torch.ones(128 * MIB, dtype=torch.uint8)
    with memory.peak_memory() as measured:
        pass
    assert measured.over_before <= 16 * MIB


def test_available_bytes():
    assert 0 < memory.available_bytes() < 2**50
