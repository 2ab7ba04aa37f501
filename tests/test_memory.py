import mmap
from concurrent.futures import ThreadPoolExecutor

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


def blocks(n_bytes=MIB, n=200):
    return [torch.ones(n_bytes, dtype=torch.uint8) for _ in range(n)]


def test_freed_blocks_are_kept_for_requests_of_their_size_and_given_back():
    with memory.freed_blocks_kept():
        addresses = {block.data_ptr() for block in blocks()}
        before = memory.resident_bytes()
        assert {block.data_ptr() for block in blocks()} == addresses
        assert memory.resident_bytes() > before - 50 * MIB
    memory.give_back_freed_blocks()
    assert memory.resident_bytes() < before - 150 * MIB


def test_blocks_are_not_taken_for_much_smaller_requests():
    with memory.freed_blocks_kept():
        large = {block.data_ptr() for block in blocks(4 * MIB, 20)}
        assert not large & {block.data_ptr() for block in blocks(2 * MIB, 20)}


def test_blocks_outlive_the_pool_and_the_pool_takes_foreign_ones():
    foreign = blocks()
    with memory.freed_blocks_kept():
        with memory.freed_blocks_kept():
            own = blocks()
        addresses = {block.data_ptr() for block in foreign}
        del foreign
        assert addresses & {block.data_ptr() for block in blocks()}  # still kept: the outer block is not over
    assert all(int(block.sum()) == MIB for block in own)
    del own
    memory.give_back_freed_blocks()


def test_the_pool_is_left_after_an_exception():
    with pytest.raises(KeyError), memory.freed_blocks_kept():
        raise KeyError
    block = torch.ones(MIB, dtype=torch.uint8)
    address = block.data_ptr()
    del block
    with memory.freed_blocks_kept():  # nothing is left in it from before
        assert torch.ones(8 * MIB, dtype=torch.uint8).data_ptr() != address


def test_the_pool_in_many_threads():
    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        with memory.freed_blocks_kept():
            for _ in range(50):
                x = torch.randn(300, 300, generator=generator)
                assert torch.equal(x @ torch.eye(300), x)
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(16)))


def test_without_kernels_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory, "kernels_loaded", lambda: False)
    with memory.freed_blocks_kept():
        memory.give_back_freed_blocks()
