"""What the machine says about main memory: its own, and what control groups leave of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def available_bytes() -> int:
    """Bytes of main memory that a process can still get: the machine's, or that of a cgroup which allows less."""
    free = int(psutil.virtual_memory().available)
    for group in _cgroups():
        limit, used = _number(group / group.limit), _number(group / group.used)
        if limit is not None and used is not None:
            free = min(free, limit - used + _reclaimable_bytes(group / "memory.stat"))
    return max(free, 0)


def _reclaimable_bytes(statistics: Path) -> int:
    """What a cgroup is charged for that the kernel gives up when memory is short: cached files."""
    lines = statistics.read_text().splitlines() if statistics.exists() else []
    fields = dict(line.split(maxsplit=1) for line in lines)
    return sum(int(fields.get(name, 0)) for name in ("active_file", "inactive_file", "slab_reclaimable"))


@dataclass(frozen=True)
class _Cgroup:
    """The folder of a control group, and its files."""

    folder: Path
    limit: str
    used: str

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def _cgroups() -> list[_Cgroup]:
    """The control groups that limit this process's memory, of version 1 or 2: its own and those around it."""
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
    """What a file of a control group holds; None if it is not there or says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def total_bytes() -> int:
    """Bytes of main memory that the process could have: the machine's, or the least that a control group allows."""
    limits = (_number(group / group.limit) for group in _cgroups())
    allowed = min((limit for limit in limits if limit is not None), default=sys.maxsize)
    return min(int(psutil.virtual_memory().total), allowed)


def resident_bytes() -> int:
    """Bytes of main memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)
