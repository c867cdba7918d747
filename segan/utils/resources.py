"""The CPUs and the memory that this process may use, which a container limits."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

CGROUP_ROOT, PROC_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """The number of CPUs by the process's affinity and its container's quota, at least 1.

    `os.cpu_count` is that of the machine, of which a container may have a part.
    """
    allowed = len(os.sched_getaffinity(0))
    return max(1, math.floor(min(allowed, cgroup_cpu_limit() or allowed)))


def memory_limit_and_free() -> tuple[int, int]:
    """Returns the bytes that this process may use, and how many of them are free."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
    total, free = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    usage = cgroup_memory_usage()
    if usage and usage[0] < total:
        return usage[0], min(free, max(0, usage[0] - usage[1]))
    return total, free


def cgroup_cpu_limit() -> float | None:
    """Returns the number of CPUs that the container may use, or None without a limit."""
    quotas = []
    for folder in _cgroup_folders("cpu"):
        words = _read_words(folder / "cpu.max") or (
            _read_words(folder / "cpu.cfs_quota_us") + _read_words(folder / "cpu.cfs_period_us")
        )
        if len(words) == 2 and words[0] not in ("max", "-1"):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def cgroup_memory_usage() -> tuple[int, int] | None:
    """Returns the container's memory limit and usage in bytes, or None without a limit."""
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    found = []
    for folder in _cgroup_folders("memory"):
        for limit, used in names:
            words = _read_words(folder / limit) + _read_words(folder / used)
            if len(words) == 2 and words[0] != "max":
                found.append((int(words[0]), int(words[1])))
    return min(found, default=None)


def _cgroup_folders(controller: str) -> Iterable[Path]:
    """Yields the folders of this process's cgroup and its parents, for cgroups v1 and v2."""
    for line in PROC_CGROUP.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = CGROUP_ROOT / controller if controllers else CGROUP_ROOT
        inner = top / group.lstrip("/")
        # In a container the path may be the host's, and only `top` exists.
        yield from (path for path in (inner, *inner.parents) if path.is_relative_to(top))


def _read_words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
