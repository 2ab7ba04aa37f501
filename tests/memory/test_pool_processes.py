"""The pool in processes of their own: forks, limits, other threads, many calls."""

import subprocess
import sys

import pytest
import torch

MIB = 2**20


def in_a_process(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


FREED_BY_THE_ALLOCATOR_OF_THE_TIME = """
import torch
from igfast.memory.scope import memory_scope
device = torch.device("cpu")
image = torch.randn(1, 8, 300, 300)
before = image.to_mkldnn()
with memory_scope(device, None):
    inside = image.to_mkldnn()
    other = image.to_mkldnn()
    del before
    del other
assert torch.equal(inside.to_dense(), image)
after = image.to_mkldnn()
del inside
del after
with memory_scope(device, None):
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
from igfast import _C
from igfast.memory import scope
from igfast.memory.scope import memory_scope

is_over = threading.Event()

def work():
    with memory_scope(torch.device("cpu"), None):
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
from igfast.memory.scope import memory_scope

def mapped():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

image = torch.randn(1, 3, 64, 64)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(61504, 2))
limit = mapped() + 5 * 2**30
resource.setrlimit(resource.{resource}, (limit, limit))
before = mapped()
with memory_scope(torch.device("cpu"), None):
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


ADDRESSES = """
import mmap
from pathlib import Path
import torch
from igfast.memory.machine import resident_bytes
from igfast.memory.recovery import give_back_freed_blocks
from igfast.memory.scope import memory_scope

def mapped():
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

resident_bytes()  # loads what it needs
first = mapped()
with memory_scope(torch.device("cpu"), None):
    kept = torch.ones(2**20, dtype=torch.uint8)
    large = torch.ones(2**28, dtype=torch.uint8)
    inside = mapped()
    del large
give_back_freed_blocks()
assert int(kept.sum()) == 2**20
resident = resident_bytes()
del kept
print(inside - first, mapped() - first, resident - resident_bytes())
"""


def test_addresses_are_given_back_with_the_last_block_of_them():
    inside, after, returned = map(int, in_a_process(ADDRESSES))
    assert inside > 2**28
    assert after < 2**27
    assert returned > MIB // 2


MANY_CALLS = """
import torch, igfast
from igfast.memory.machine import resident_bytes
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
