import mmap

from igfast.memory.machine import resident_bytes
from igfast.memory.peak import PeakMemory, _polling, peak_memory

MIB = 2**20


def resident_block(n_bytes):
    """Fresh pages, every one written; malloc may hand out pages that the process already holds."""
    block = mmap.mmap(-1, n_bytes)
    for offset in range(0, n_bytes, mmap.PAGESIZE):
        block[offset] = 1
    return block


def test_peak_memory_sees_what_is_freed_again():
    with peak_memory() as measured:
        resident_block(64 * MIB).close()
    assert 60 * MIB <= measured.over_before <= 100 * MIB


def test_peak_memory_by_polling():
    measured = PeakMemory(resident_bytes(), 0)
    with _polling(measured):
        held = resident_block(64 * MIB)
    held.close()
    assert measured.over_before >= 60 * MIB


def test_peak_begins_anew():
    resident_block(128 * MIB).close()
    with peak_memory() as measured:
        pass
    assert measured.over_before <= 16 * MIB
