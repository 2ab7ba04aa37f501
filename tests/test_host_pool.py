import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from igfast import _C, memory

MIB = 2**20


def lent(budget=None):
    return memory.memory_lent(torch.device("cpu"), budget)


def blocks(n_bytes=MIB, n=200):
    return [torch.ones(n_bytes, dtype=torch.uint8) for _ in range(n)]


def test_freed_blocks_are_kept_for_later_requests_and_given_back():
    with lent():
        addresses = {block.data_ptr() for block in blocks()}
        before = memory.resident_bytes()
        assert {block.data_ptr() for block in blocks()} == addresses
        assert memory.resident_bytes() > before - 50 * MIB
    memory.give_back_freed_blocks()
    assert memory.resident_bytes() < before - 150 * MIB


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
        memory.give_back_freed_blocks()
        assert all((block == block[0]).all() for block in held)
    assert {int(block[0]) for block in held} > {6, 7}


def test_blocks_of_many_threads_do_not_overlap():
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(keep_random_blocks, range(4), (None, 40 * MIB, None, 40 * MIB)))


def in_a_process(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


FREED_BY_THE_ALLOCATOR_OF_THE_TIME = """
import torch
from igfast import memory
device = torch.device("cpu")
image = torch.randn(1, 8, 300, 300)
before = image.to_mkldnn()
with memory.memory_lent(device, None):
    inside = image.to_mkldnn()
    other = image.to_mkldnn()
    del before
    del other
assert torch.equal(inside.to_dense(), image)
after = image.to_mkldnn()
del inside
del after
with memory.memory_lent(device, None):
    del image
print(torch.randn(300, 300).shape)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_buffers_of_onednn_outlive_the_pool_and_are_freed_in_it():
    in_a_process(FREED_BY_THE_ALLOCATOR_OF_THE_TIME)


FORKS = """
import os
import signal
import threading
import torch
from igfast import _C, memory

is_over = threading.Event()

def work():
    with memory.memory_lent(torch.device("cpu"), None):
        while not is_over.is_set():
            torch.empty(2**22, dtype=torch.uint8)

def allocate():
    signal.alarm(10)  # ends a child that waits for ever
    in_use = _C.host_pool_bytes_in_use()
    block = torch.empty(2**20, dtype=torch.uint8)
    block.numpy()[:] = 1
    return _C.host_pool_bytes_in_use() == in_use

thread = threading.Thread(target=work)
thread.start()
statuses = set()
for _ in range(300):
    child = os.fork()
    if child == 0:
        os._exit(0 if allocate() else 1)
    statuses.add(os.waitpid(child, 0)[1])
is_over.set()
thread.join()
print(*statuses)
"""


def test_a_fork_while_another_thread_uses_the_pool():
    assert in_a_process(FORKS) == ["0"]


BUFFERS_OF_OTHER_THREADS = """
import threading
import time
import torch
from igfast import _C

torch.set_num_threads(1)
image = torch.randn(1, 8, 64, 64)
is_over = threading.Event()

def work():
    while not is_over.is_set():
        image.to_mkldnn()  # asks the allocator of the time, and frees by that of a later time

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
end = time.monotonic() + 5
while time.monotonic() < end:
    _C.enter_host_pool()
    time.sleep(0)
    _C.leave_host_pool()
    time.sleep(0)
is_over.set()
for thread in threads:
    thread.join()
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_other_threads_ask_for_buffers_while_the_pool_comes_and_goes():
    in_a_process(BUFFERS_OF_OTHER_THREADS)


WITH_FEW_ADDRESSES = """
import resource
import torch
import igfast
from igfast import memory

def mapped():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

image = torch.randn(1, 3, 64, 64)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(61504, 2))
limit = mapped() + 5 * 2**30
resource.setrlimit(resource.{resource}, (limit, limit))
before = mapped()
with memory.memory_lent(torch.device("cpu"), None):
    block = torch.empty(2**20)
    print(mapped() - before)
    del block
explainer = igfast.IntegratedGradients(network.eval())
print(explainer.attribute(image, target=1, n_steps=300, return_report=True)[-1].peak_bytes)
"""


@pytest.mark.parametrize("resource", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_where_addresses_are_limited(resource):
    segment, peak = map(int, in_a_process(WITH_FEW_ADDRESSES.replace("{resource}", resource)))
    assert 2**28 <= segment < 2**29  # not 4 GiB, of which there would be just enough
    assert 0 < peak < 2**29


def test_a_request_of_more_than_a_segment():
    with lent(6 * 2**30) as use:
        large = torch.empty(5 * 2**30, dtype=torch.uint8)
        large[:: 2**30] = 1
        other = torch.ones(MIB, dtype=torch.uint8)
        del large
        assert int(other.sum()) == MIB
    assert 2**32 < use.peak() <= 5 * 2**30 + 4 * MIB


ADDRESSES = """
import mmap
from pathlib import Path
import torch
from igfast import memory

def mapped():
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

memory.resident_bytes()  # loads what it needs
first = mapped()
with memory.memory_lent(torch.device("cpu"), None):
    kept = torch.ones(2**20, dtype=torch.uint8)
    large = torch.ones(2**28, dtype=torch.uint8)
    inside = mapped()
    del large
memory.give_back_freed_blocks()
assert int(kept.sum()) == 2**20
resident = memory.resident_bytes()
del kept
print(inside - first, mapped() - first, resident - memory.resident_bytes())
"""


def test_addresses_are_given_back_with_the_last_block_of_them():
    inside, after, returned = map(int, in_a_process(ADDRESSES))
    assert inside > 2**28
    assert after < 2**27
    assert returned > MIB // 2


@pytest.mark.parametrize(("is_long", "left"), [(True, 0), (False, 32 * MIB)])
def test_short_calls_leave_some_pages_for_the_next_one(monkeypatch, is_long, left):
    monkeypatch.setattr(memory, "_RETURN_ALL_AFTER_SECONDS", 0.0 if is_long else 1e9)
    memory.give_back_freed_blocks()
    before = memory.resident_bytes()
    with lent():
        blocks()
    assert abs(memory.resident_bytes() - before - left) <= 5 * MIB
    assert _C.host_pool_bytes() - _C.host_pool_bytes_in_use() >= left
    with lent() as use:
        result = blocks(n=10)
    assert 10 * MIB <= use.peak() < 14 * MIB
    del result
    assert _C.host_pool_bytes() - _C.host_pool_bytes_in_use() >= min(left, 20 * MIB)
    memory.give_back_freed_blocks()
    assert abs(memory.resident_bytes() - before) <= 5 * MIB


@pytest.mark.parametrize("budget", [None, 400 * MIB])  # 350 MiB of it for tensors
def test_pages_that_nobody_uses_make_way(budget):
    with lent(budget) as use:
        held = blocks(3 * MIB, 100)
        del held[::2]
        held += blocks(5 * MIB, 25)  # none fits into what was freed
        assert use.peak() <= 335 * MIB  # 2 MiB of each gap


def test_room_beside_earlier_results_is_in_the_budget():
    with lent():
        held = blocks(MIB + MIB // 2, 100)
        del held[::2]
    before = memory.resident_bytes()
    with lent(64 * MIB) as use:  # 56 MiB of it for tensors
        fits = []
        with pytest.raises(torch.OutOfMemoryError):
            fits.extend(torch.ones(MIB, dtype=torch.uint8) for _ in range(100))
        assert 25 <= len(fits) <= 56
        assert memory.resident_bytes() <= before + 60 * MIB
        assert use.peak() <= 56 * MIB


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
    memory.give_back_freed_blocks()


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
    monkeypatch.setattr(memory, "kernels_loaded", lambda: False)
    with lent():
        memory.give_back_freed_blocks()


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
    memory.give_back_freed_blocks()
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
        memory.give_back_freed_blocks()
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


def test_results_that_outlive_their_call_are_not_in_the_next_ones_budget():
    with lent():
        kept = blocks(n=40)
    with lent(32 * MIB) as use:
        torch.empty(20 * MIB, dtype=torch.uint8)
    assert use.peak() < 22 * MIB
    assert len(kept) == 40


MANY_CALLS = """
import torch, igfast
from igfast.memory import resident_bytes
from torch import nn

layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3)]
network = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
images = torch.randn(2, 3, 64, 64)
for n in range(1, 301):
    igfast.IntegratedGradients(network).attribute(images, target=3, n_steps=8)
    if n in (20, 300):
        print(resident_bytes())
"""


def test_many_calls_do_not_grow_the_process():
    after_20, after_300 = map(int, in_a_process(MANY_CALLS))
    assert after_300 <= 1.02 * after_20
