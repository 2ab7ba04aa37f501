"""Reads free and total main memory, as the machine and its control groups limit them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def available_bytes() -> int:
    """Returns the bytes of main memory that this process can still get from the machine and its control groups."""
    free = int(psutil.virtual_memory().available)
    for group in _cgroups():
        limit, used = _number(group / group.limit), _number(group / group.used)
        if limit is not None and used is not None:
            free = min(free, limit - used + _reclaimable_bytes(group / "memory.stat"))
    return max(free, 0)


def _reclaimable_bytes(statistics: Path) -> int:
    """Returns the bytes charged to a control group that the kernel frees when memory is short: cached files."""
    lines = statistics.read_text().splitlines() if statistics.exists() else []
    fields = dict(line.split(maxsplit=1) for line in lines)
    return sum(int(fields.get(name, 0)) for name in ("active_file", "inactive_file", "slab_reclaimable"))


@dataclass(frozen=True)
class _Cgroup:
    """The folder of a control group, and the names of the files with its limit and its use."""

    folder: Path
    limit: str
    used: str

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def _cgroups() -> list[_Cgroup]:
    """Returns the control groups (version 1 or 2) that limit this process's memory: its own and all ancestors."""
    found = []
    lines = _OWN_CGROUPS.read_text().splitlines() if _OWN_CGROUPS.exists() else ["0::/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = _CGROUP, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = _CGROUP / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        own = root / path.strip("/")
        found += [_Cgroup(folder, *names) for folder in (own, *own.parents) if folder == root or root in folder.parents]
    return found


def _number(path: Path) -> int | None:
    """Returns the integer in a file of a control group; None if the file is missing or says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def total_bytes() -> int:
    """Returns the bytes of main memory of the machine, or the lowest limit of a control group if that is less."""
    limits = (_number(group / group.limit) for group in _cgroups())
    allowed = min((limit for limit in limits if limit is not None), default=sys.maxsize)
    return min(int(psutil.virtual_memory().total), allowed)


def resident_bytes() -> int:
    """Returns the resident memory of this process in bytes."""
    return int(psutil.Process().memory_info().rss)
