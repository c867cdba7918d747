"""This machine: Python, packages, GPUs, cores, memory, disks, and the system's limits."""

from __future__ import annotations

import functools
import os
import platform
import resource
import shutil
import tempfile
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.filesize import decimal

import segan
from segan.doctor.checks import Check, Outcome, failed, ok, skipped, warning

GB = 10**9
ROOT = Path(segan.__file__).parents[1]  # of a checkout: pyproject.toml and constraints.txt
CGROUP_ROOT, PROC_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SHM_DIR = Path("/dev/shm")  # noqa: S108
NVIDIA_VERSION_FILE = Path("/proc/driver/nvidia/version")
LOW_MEMORY = 4 * GB  # of a training of one worker about half
LOW_DISK, MIN_DISK = 10 * GB, 1 * GB
DISK_CAPACITY_THRESHOLD = 0.95  # above it Ray no longer moves objects to disk
OBJECT_STORE_FRACTION, MAX_OBJECT_STORE = (
    0.3,
    200 * GB,
)  # of memory, for Ray's object store if it is not told
MIN_OPEN_FILES, RAY_OPEN_FILES = (
    8192,
    65536,
)  # what Ray recommends, and up to what it raises its own


def machine_checks() -> list[Check]:
    ray = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")  # noqa: S108
    return [
        Check("python", check_python),
        Check("packages", check_packages),
        Check("versions", check_tested_versions),
        Check("GPU", check_gpus, timeout_s=60),  # torch is imported, CUDA set up
        Check("cores", check_cores),
        Check("memory", check_memory),
        Check("temporary folder", functools.partial(check_disk, Path(tempfile.gettempdir()))),
        Check("Ray's folder", functools.partial(check_disk, ray)),
        Check("shared memory", check_shared_memory),
        Check("open files", check_open_files),
    ]


def check_python() -> Outcome:
    wanted, found = _read_requirements()[0], platform.python_version()
    if found in SpecifierSet(wanted):
        return ok(f"{found} on {platform.system()} {platform.machine()}")
    return failed(f"{found}, expected {wanted}", f"make the environment with Python {wanted}")


def check_packages() -> Outcome:
    """Against what pyproject.toml asks for."""
    wrong = []
    requirements = [Requirement(line) for line in _read_requirements()[1]]
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    for requirement in needed:
        found = _installed_version(requirement.name)
        if found is None:
            wrong.append(f"no {requirement.name}")
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found}, expected {requirement.specifier}")
    if wrong:
        return failed("; ".join(wrong), "make setup, or pip install -c constraints.txt -e .")
    return ok(f"{len(needed)}, each as asked for")


def check_tested_versions() -> Outcome:
    """Against constraints.txt, of the packages that are here."""
    path = ROOT / "constraints.txt"
    if not path.exists():
        return skipped("no constraints.txt beside the package")
    tested = [Requirement(line) for line in path.read_text().splitlines() if line.strip()]
    pairs = [(r, found) for r in tested if (found := _installed_version(r.name))]
    others = [
        f"{r.name} {found}, tested {str(r.specifier).removeprefix('==')}"
        for r, found in pairs
        if not r.specifier.contains(found, prereleases=True)
    ]
    if others:
        return warning("; ".join(others), "pip install -c constraints.txt -e . for those tested")
    return ok(f"{len(pairs)}, each the one of constraints.txt")


def check_gpus() -> Outcome:
    import torch

    driver = _nvidia_driver_version()
    cuda = torch.version.cuda
    if not torch.cuda.is_available():
        if driver is None:
            return skipped(f"none; torch {torch.__version__} trains on the CPU")
        if cuda is None:
            return failed(
                f"NVIDIA driver {driver}, but torch {torch.__version__} is built without CUDA",
                "install torch from PyPI, or from the index for the driver's CUDA",
            )
        return failed(
            f"NVIDIA driver {driver}, and torch for CUDA {cuda} finds no usable GPU",
            "a driver for this CUDA (13: 580 or later), or a torch for the driver's; in a "
            "container, one that is given the GPUs",
        )
    busy, names = [], []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        names.append(f"{torch.cuda.get_device_name(index)}, {decimal(total)}")
        if free < total / 2:
            busy.append(f"GPU {index} has {decimal(free)} of {decimal(total)} free")
        # That CUDA answers does not say that the build has code for this GPU: this does.
        product = torch.ones(64, 64, device=f"cuda:{index}") @ torch.ones(64, 1, device=index)
        assert product.sum().item() == 64 * 64, "a product of ones"
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    found = f"{'; '.join(names)}; driver {driver}, CUDA {cuda}, NCCL {nccl}"
    if busy:
        return warning(f"{found}; {'; '.join(busy)}", "see with nvidia-smi who uses it")
    return ok(found)


def check_cores() -> Outcome:
    here, mine = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    limit = cgroup_cpu_limit()
    usable = min(mine, limit or mine)
    if usable < here:
        threads = max(1, int(usable))
        return warning(
            f"{usable:g} of {here} may be used",
            f"cluster.threads_per_worker={threads} divided by the workers here, or torch starts "
            "too many threads",
        )
    return ok(str(here))


def check_memory() -> Outcome:
    limit, free = _memory_limit_and_free()
    found = f"{decimal(free)} free of {decimal(limit)}"
    if free < LOW_MEMORY:
        return warning(found, "end other programs, or raise the container's limit")
    return ok(found)


def check_disk(folder: Path) -> Outcome:
    """Where `folder` is, or will be."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(there)
    found = f"{folder}: {decimal(usage.free)} free of {decimal(usage.total)}"
    advice = "make room, or let TMPDIR (for Ray RAY_TMPDIR) name a folder on another disk"
    if usage.free < MIN_DISK:
        return failed(found, advice)
    if usage.free < LOW_DISK or usage.used > DISK_CAPACITY_THRESHOLD * usage.total:
        return warning(found, advice)
    return ok(found)


def check_shared_memory() -> Outcome:
    if not SHM_DIR.is_dir():
        return skipped(f"no {SHM_DIR} on this system")
    usage = shutil.disk_usage(SHM_DIR)
    wanted = int(min(OBJECT_STORE_FRACTION * _memory_limit_and_free()[0], MAX_OBJECT_STORE))
    found = f"{SHM_DIR}: {decimal(usage.free)} free of {decimal(usage.total)}"
    if usage.free < wanted:
        return warning(
            f"{found}; a Ray started here would take {decimal(wanted)} for its objects, and puts "
            "them on disk instead",
            "in a container --shm-size or a memory volume at /dev/shm; or start Ray with a "
            "smaller --object-store-memory",
        )
    return ok(f"{found}; a Ray started here takes {decimal(wanted)}")


def check_open_files() -> Outcome:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    soft, hard = (RAY_OPEN_FILES if limit == infinite else limit for limit in (soft, hard))
    if max(soft, min(hard, RAY_OPEN_FILES)) < MIN_OPEN_FILES:
        return warning(f"{soft} to {hard}", f"ulimit -n {RAY_OPEN_FILES} before Ray is started")
    return ok(f"{soft} to {hard}")


def _read_requirements() -> tuple[str, list[str]]:
    """The Python and the packages that are asked for: by the checkout, else as installed."""
    path = ROOT / "pyproject.toml"
    if path.exists():
        project = tomllib.loads(path.read_text()).get("project", {})
        if project.get("name") == "segan":
            return project["requires-python"], project["dependencies"]
    installed = metadata.distribution("segan")
    return installed.metadata["Requires-Python"], installed.requires or []


def _installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _nvidia_driver_version() -> str | None:
    """The version of NVIDIA's driver; None where there is none."""
    if not NVIDIA_VERSION_FILE.exists():
        return None
    words = NVIDIA_VERSION_FILE.read_text().splitlines()[0].split()
    numbers = [word for word in words if word[0].isdigit() and "." in word]
    return numbers[0] if numbers else "of unknown version"


def _memory_limit_and_free() -> tuple[int, int]:
    """What this process may use, and what is free of that; bytes."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
    total, free = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    found = cgroup_memory_usage()
    if found and found[0] < total:
        return found[0], min(free, max(0, found[0] - found[1]))
    return total, free


def cgroup_cpu_limit() -> float | None:
    """The CPUs that the container's limits allow; None without one."""
    quotas = []
    for folder in _cgroup_folders("cpu"):
        words = _read_words(folder / "cpu.max") or (
            _read_words(folder / "cpu.cfs_quota_us") + _read_words(folder / "cpu.cfs_period_us")
        )
        if len(words) == 2 and words[0] not in ("max", "-1"):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def cgroup_memory_usage() -> tuple[int, int] | None:
    """The container's limit in bytes, and what is used of it; None without one."""
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    found = []
    for folder in _cgroup_folders("memory"):
        for limit, used in names:
            words = _read_words(folder / limit) + _read_words(folder / used)
            if len(words) == 2 and words[0] != "max":
                found.append((int(words[0]), int(words[1])))
    return min(found, default=None)


def _cgroup_folders(controller: str) -> Iterable[Path]:
    """This process's groups and those around them, in either version of the system's."""
    for line in PROC_CGROUP.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = CGROUP_ROOT / controller if controllers else CGROUP_ROOT
        inner = top / path.lstrip("/")
        # In a container the path may be the host's, and only the top is there.
        yield from (one for one in (inner, *inner.parents) if one.is_relative_to(top))


def _read_words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
