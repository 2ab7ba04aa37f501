"""What control groups leave of the machine's memory: their files, as a folder of a test's own."""

import psutil
import pytest

from igfast.memory import machine

MIB = 2**20


def test_available_bytes():
    assert 0 < machine.available_bytes() <= psutil.virtual_memory().total


@pytest.fixture
def control_groups(tmp_path, monkeypatch):
    """Writes the files of control groups, and which ones the process is in."""

    def write(own, files):
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        (tmp_path / "own").write_text(own)
        monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cgroup")
        monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")

    return write


def test_version_2_counts_the_groups_around_its_own(control_groups):
    files = {
        "a/memory.max": 300 * MIB,
        "a/memory.current": 100 * MIB,
        "a/b/memory.max": "max",
        "a/b/memory.current": 90 * MIB,
    }
    control_groups("0::/a/b\n", files)
    assert machine.available_bytes() == 200 * MIB
    assert machine.total_bytes() == 300 * MIB


def test_cached_files_count_as_free(control_groups):
    statistics = f"anon {50 * MIB}\ninactive_file {20 * MIB}\nactive_file {10 * MIB}\nslab_reclaimable {5 * MIB}"
    control_groups("0::/\n", {"memory.max": 100 * MIB, "memory.current": 90 * MIB, "memory.stat": statistics})
    assert machine.available_bytes() == 45 * MIB


def test_version_1(control_groups):
    files = {"memory/a/memory.limit_in_bytes": 64 * MIB, "memory/a/memory.usage_in_bytes": 60 * MIB}
    control_groups("9:cpu,cpuacct:/a\n4:memory:/a\n0::/\n", files)
    assert machine.available_bytes() == 4 * MIB
    assert machine.total_bytes() == 64 * MIB


def test_more_than_is_allowed_leaves_nothing(control_groups):
    control_groups("0::/\n", {"memory.max": MIB, "memory.current": 2 * MIB})
    assert machine.available_bytes() == 0


@pytest.mark.parametrize("own", ["", "0::/\n"])
def test_no_limit_is_that_of_the_machine(control_groups, own):
    control_groups(own, {"memory.max": "max"})
    assert machine.total_bytes() == psutil.virtual_memory().total
