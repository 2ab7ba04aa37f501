import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from igfast import _C
from igfast.memory import scope
from igfast.memory.machine import resident_bytes
from igfast.memory.recovery import give_back_freed_blocks
from igfast.memory.scope import memory_scope

MIB = 2**20


def lent(budget=None):
    return memory_scope(torch.device("cpu"), budget)


def blocks(n_bytes=MIB, n=200):
    return [torch.ones(n_bytes, dtype=torch.uint8) for _ in range(n)]


def earlier_results(n_bytes, n):
    """Every second of `n` blocks, and the last; what was freed beside them has no pages."""
    with lent():
        held = blocks(n_bytes, n)
        del held[: n - 1 : 2]
    give_back_freed_blocks()
    return held


def test_freed_blocks_are_kept_for_later_requests_and_given_back():
    with lent():
        addresses = {block.data_ptr() for block in blocks()}
        before = resident_bytes()
        assert {block.data_ptr() for block in blocks()} == addresses
        assert resident_bytes() > before - 50 * MIB
    give_back_freed_blocks()
    assert resident_bytes() < before - 150 * MIB


@pytest.mark.parametrize("n_bytes", [MIB // 2, 3 * MIB, 7 * MIB + 1000, 50 * MIB, 200 * MIB])
def test_freed_blocks_serve_requests_of_any_size(n_bytes):
    with lent() as use:
        blocks()
        blocks(n_bytes, 200 * MIB // n_bytes)
        assert use.peak() <= 202 * MIB


def keep_random_blocks(seed, budget):
    """Blocks of random sizes keep what was written to them while others come and go; returns how many were refused."""
    random_number, held, refused = random.Random(seed), {}, 0

    def is_intact(i, block):
        return (block.numpy() == i % 251).all()  # NumPy's memory is not in the budget

    with lent(budget):
        for i in range(2000):
            try:
                block = torch.empty(int(2 ** random_number.uniform(15, 22)), dtype=torch.uint8)
            except torch.OutOfMemoryError:
                refused += 1
            else:
                assert block.data_ptr() % 64 == 0
                held[i] = block.fill_(i % 251)
            if len(held) > 40 or (refused and held):
                key = random_number.choice(list(held))
                assert is_intact(key, held.pop(key))
        assert all(is_intact(*item) for item in held.items())
    return refused


def test_blocks_do_not_overlap_and_begin_at_cache_lines():
    assert keep_random_blocks(0, None) == 0
    assert 0 < keep_random_blocks(1, 40 * MIB) < 500


def test_returning_what_is_idle_leaves_blocks_intact():
    random_number, held = random.Random(0), []
    for i in range(8):
        with lent():
            fresh = [torch.empty(random_number.randint(2**16, 2**19), dtype=torch.uint8) for _ in range(200)]
            held += [block.fill_(i) for block in fresh]
            random_number.shuffle(held)
            del held[100:150], fresh
        del held[100:]
        give_back_freed_blocks()
        assert all((block == block[0]).all() for block in held)
    assert {int(block[0]) for block in held} > {6, 7}


def test_blocks_of_many_threads_do_not_overlap():
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(keep_random_blocks, range(4), (None, 40 * MIB, None, 40 * MIB)))


def test_a_request_of_more_than_a_segment():
    with lent(6 * 2**30) as use:
        large = torch.empty(5 * 2**30, dtype=torch.uint8)
        large[:: 2**30] = 1
        other = torch.ones(MIB, dtype=torch.uint8)
        del large
        assert int(other.sum()) == MIB
    assert 2**32 < use.peak() <= 5 * 2**30 + 4 * MIB


@pytest.mark.parametrize(("is_long", "left"), [(True, 0), (False, 32 * MIB)])
def test_short_calls_leave_some_pages_for_the_next_one(monkeypatch, is_long, left):
    monkeypatch.setattr(scope, "_RETURN_ALL_AFTER_SECONDS", 0.0 if is_long else 1e9)
    give_back_freed_blocks()
    before = resident_bytes()
    with lent():
        blocks()
    assert abs(resident_bytes() - before - left) <= 5 * MIB
    assert _C.host_pool_bytes() - _C.host_pool_bytes_in_use() >= left
    with lent() as use:
        result = blocks(n=10)
    assert 10 * MIB <= use.peak() < 14 * MIB
    del result
    assert _C.host_pool_bytes() - _C.host_pool_bytes_in_use() >= min(left, 20 * MIB)
    give_back_freed_blocks()
    assert abs(resident_bytes() - before) <= 5 * MIB


@pytest.mark.parametrize("n_earlier", [0, 1000])
@pytest.mark.parametrize("budget", [None, 400 * MIB])  # 350 MiB of it for tensors
def test_pages_that_nobody_uses_make_way(budget, n_earlier):
    earlier = earlier_results(MIB, n_earlier)
    with lent(budget) as use:
        held = blocks(3 * MIB, 100)
        del held[::2]
        held += blocks(5 * MIB, 25)  # none fits into what was freed
        assert use.peak() <= 335 * MIB  # 2 MiB of each gap
    assert all(block.min() == 1 for block in earlier)


@pytest.mark.parametrize(
    ("n_bytes", "n"), [(MIB, 100), (MIB, 102), (MIB, 103), (MIB, 107), (MIB // 8, 801), (100 * 2**10, 1024)]
)
def test_room_beside_earlier_results_is_in_the_budget(n_bytes, n):
    earlier = earlier_results(n_bytes + n_bytes // 2, n)  # what is free behind the last may begin anywhere in a unit
    before = resident_bytes()
    with lent(64 * MIB) as use:  # 56 MiB of it for tensors
        fits = []
        with pytest.raises(torch.OutOfMemoryError):
            fits.extend(torch.ones(n_bytes, dtype=torch.uint8) for _ in range(1000))
        n_fit = len(fits)  # a failure shows no block: there is no memory for their text
        assert 52 * MIB <= n_fit * n_bytes <= 56 * MIB
        assert resident_bytes() <= before + 60 * MIB
        assert use.peak() <= 56 * MIB
    assert all(block.min() == 1 for block in earlier)


def test_earlier_results_that_are_freed_give_their_pages_back():
    held = earlier_results(MIB + MIB // 2, 100)
    before = resident_bytes()
    with lent(16 * MIB):
        del held
        assert resident_bytes() <= before - 70 * MIB
        torch.ones(8 * MIB, dtype=torch.uint8)


_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def has_huge_pages(address):
    """Whether the kernel was asked for huge pages there: proc(5), VmFlags of the mapping."""
    is_inside = False
    for first, *others in map(str.split, Path("/proc/self/smaps").read_text().splitlines()):
        if not first.endswith(":"):
            begin, end = (int(text, 16) for text in first.split("-"))
            is_inside = begin <= address < end
        elif is_inside and first == "VmFlags:":
            return "hg" in others
    return False


@pytest.mark.skipif(
    not _HUGE_PAGES.exists() or "[madvise]" not in _HUGE_PAGES.read_text(),
    reason="this system does not give huge pages to those who ask",
)
def test_blocks_ask_for_huge_pages():
    with lent():
        held = blocks(8 * MIB, 4)
        assert all(has_huge_pages(block.data_ptr() + 4 * MIB) for block in held)


def test_blocks_outlive_the_pool_and_the_pool_takes_foreign_ones():
    foreign = blocks()
    with lent():
        with lent():
            own = blocks()
        del foreign
        addresses = {block.data_ptr() for block in blocks()}
        assert addresses == {block.data_ptr() for block in blocks()}  # still kept: the outer block is not over
    assert all(int(block.sum()) == MIB for block in own)
    del own
    give_back_freed_blocks()


def test_the_pool_is_left_after_an_exception():
    held = _C.host_pool_bytes_in_use()

    def fail():
        own = blocks()
        assert _C.host_pool_bytes_in_use() >= held + 200 * MIB
        raise KeyError(len(own))

    with pytest.raises(KeyError), lent():
        fail()
    assert _C.host_pool_bytes_in_use() == held
    own = blocks()
    assert _C.host_pool_bytes_in_use() == held
    del own


def test_the_pool_in_many_threads():
    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        with lent():
            for _ in range(50):
                x = torch.randn(300, 300, generator=generator)
                assert torch.equal(x @ torch.eye(300), x)
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(16)))


def test_without_kernels_nothing_happens(monkeypatch):
    monkeypatch.setattr(scope, "kernels_loaded", lambda: False)
    with lent():
        give_back_freed_blocks()


def test_requests_beyond_the_budget_fail_and_the_peak_is_known():
    with lent(64 * MIB) as use:
        held = blocks(n=20)
        assert 20 * MIB <= use.peak() < 22 * MIB
        with pytest.raises(torch.OutOfMemoryError, match="are left of the budget") as caught:
            torch.empty(40 * MIB, dtype=torch.uint8)
        asked, left = map(int, re.findall(r"\d{4,}", str(caught.value)))
        assert asked == 40 * MIB
        assert 33 * MIB <= left <= 36 * MIB  # of seven eighths
        del held
        torch.empty(40 * MIB, dtype=torch.uint8)  # what is kept makes way for it
    torch.empty(100 * MIB, dtype=torch.uint8)
    assert 40 * MIB <= use.peak() < 43 * MIB


@pytest.mark.parametrize("budget", [MIB, 2 * MIB, 4 * MIB])
def test_small_budgets_are_for_blocks_of_any_size(budget):
    with lent(budget) as use:
        held = blocks(100 * 2**10, 8 * budget // MIB)
        with pytest.raises(torch.OutOfMemoryError):
            held += blocks(100 * 2**10, 2 * budget // MIB)
    assert 800 * 2**10 * budget // MIB <= use.peak() <= budget


def test_kept_blocks_are_in_the_peak_but_not_in_that_of_tensors():
    give_back_freed_blocks()
    with lent() as use:
        held = blocks(n=20)
        del held[::2]
        blocks(3 * MIB, n=10)
        assert 40 * MIB <= use.peak_of_tensors() < 41 * MIB
        assert 50 * MIB <= use.peak() < 54 * MIB
    assert 40 * MIB <= use.peak_of_tensors() < 41 * MIB


def test_pages_that_went_back_count_again():
    with lent():
        blocks(300 * MIB, 1)
        with_pages = _C.host_pool_bytes()
        give_back_freed_blocks()
        without = _C.host_pool_bytes()
        assert without <= with_pages - 300 * MIB
        own = blocks(n=10)
        assert _C.host_pool_bytes() >= without + 8 * MIB
    del own


def test_a_budget_is_that_of_its_thread_and_of_the_inner_call():
    with lent(16 * MIB):
        with lent(64 * MIB):
            torch.empty(32 * MIB, dtype=torch.uint8)
        with ThreadPoolExecutor(1) as threads:
            threads.submit(torch.empty, 32 * MIB, dtype=torch.uint8).result()
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(32 * MIB, dtype=torch.uint8)


@pytest.mark.parametrize("budget", [2**63 - 1, 2**64, 2**100])
def test_budgets_beyond_all_addresses(budget):
    with lent(budget) as use:
        blocks(n=10)
        assert use.peak() >= 10 * MIB
    in_use = _C.host_pool_bytes_in_use()
    own = blocks(n=10)
    assert _C.host_pool_bytes_in_use() == in_use
    del own


def test_requests_that_fail_are_not_in_other_threads_budgets():
    is_over = threading.Event()

    def ask_for_too_much():
        for _ in range(300):
            with pytest.raises(RuntimeError, match="allocate memory"):
                torch.empty(2**50, dtype=torch.uint8)
        is_over.set()

    with ThreadPoolExecutor(1) as threads, lent(64 * MIB) as use:
        failed = threads.submit(ask_for_too_much)
        while not is_over.is_set() and not failed.done():
            for _ in range(100):
                torch.empty(MIB, dtype=torch.uint8)
        failed.result()
        assert max(use.peak(), use.peak_of_tensors()) < 8 * MIB


def test_results_that_outlive_their_call_are_not_in_the_next_ones_budget():
    with lent():
        kept = blocks(n=40)
    with lent(32 * MIB) as use:
        torch.empty(20 * MIB, dtype=torch.uint8)
    assert use.peak() < 22 * MIB
    assert len(kept) == 40
