"""Checks of this machine: Python, packages, GPUs, cores, memory, disks and system limits."""

from __future__ import annotations

import functools
import os
import platform
import resource
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.filesize import decimal

import segan
from segan.doctor.checks import Check, Outcome, failed, ok, skipped, warning
from segan.utils.resources import cgroup_cpu_limit, memory_limit_and_free

GB = 10**9
ROOT = Path(segan.__file__).parents[1]  # of a checkout, with pyproject.toml and constraints.txt
SHM_DIR = Path("/dev/shm")  # noqa: S108
NVIDIA_VERSION_FILE = Path("/proc/driver/nvidia/version")
LOW_MEMORY = 4 * GB  # a training with one worker takes about half of it
LOW_DISK, MIN_DISK = 10 * GB, 1 * GB
DISK_CAPACITY_THRESHOLD = 0.95  # above it, Ray no longer spills objects to disk
# Ray's default size of the object store: a fraction of the memory, up to a maximum.
OBJECT_STORE_FRACTION, MAX_OBJECT_STORE = 0.3, 200 * GB
# The limit that Ray recommends, and the one to which it raises its own.
MIN_OPEN_FILES, RAY_OPEN_FILES = 8192, 65536


def machine_checks() -> list[Check]:
    ray_folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")  # noqa: S108
    return [
        Check("python", check_python),
        Check("packages", check_packages),
        Check("versions", check_tested_versions),
        Check("GPU", check_gpus, timeout_s=60),  # imports torch and initialises CUDA
        Check("cores", check_cores),
        Check("memory", check_memory),
        Check("temporary folder", functools.partial(check_disk, Path(tempfile.gettempdir()))),
        Check("Ray's folder", functools.partial(check_disk, ray_folder)),
        Check("shared memory", check_shared_memory),
        Check("open files", check_open_files),
    ]


def check_python() -> Outcome:
    required, found = _read_requirements()[0], platform.python_version()
    if found in SpecifierSet(required):
        return ok(f"{found} on {platform.system()} {platform.machine()}")
    return failed(f"{found}, expected {required}", f"create the environment with Python {required}")


def check_packages() -> Outcome:
    """Compares the installed packages with the requirements of pyproject.toml.

    Those of the extra train count where any of its two main packages is installed.
    """
    extra = "train" if _installed_version("torch") or _installed_version("ray") else ""
    _, needed = _read_requirements(extra)
    missing = [f"{r.name} is missing" for r in needed if _installed_version(r.name) is None]
    if problems := missing + _version_mismatches(needed):
        target = f"'.[{extra}]'" if extra else "."
        return failed(
            "; ".join(problems), f"make setup, or pip install -c constraints.txt -e {target}"
        )
    found = f"{len(needed)} installed as required"
    return ok(found if extra else f"{found}; without segan[train], only runs can be read")


def check_tested_versions() -> Outcome:
    """Compares the installed packages with the tested versions in constraints.txt."""
    path = ROOT / "constraints.txt"
    if not path.exists():
        return skipped("no constraints.txt beside the package")
    tested = [Requirement(line) for line in path.read_text().splitlines() if line.strip()]
    if mismatches := _version_mismatches(tested):
        return warning(
            "; ".join(mismatches),
            "pip install -c constraints.txt -e . installs the tested versions",
        )
    return ok("as in constraints.txt")


def check_gpus() -> Outcome:
    if not _installed_version("torch"):
        return skipped("not checked: torch is not installed")
    import torch

    driver = _nvidia_driver_version()
    cuda = torch.version.cuda
    if not torch.cuda.is_available():
        if driver is None:
            return skipped(f"none; torch {torch.__version__} trains on the CPU")
        if cuda is None:
            return failed(
                f"NVIDIA driver {driver}, but torch {torch.__version__} is built without CUDA",
                "install torch from PyPI, or from PyTorch's index for the driver's CUDA",
            )
        return failed(
            f"NVIDIA driver {driver}, but torch for CUDA {cuda} finds no usable GPU",
            "install a driver for this CUDA (for 13: 580 or later) or a torch for the driver's "
            "CUDA; start a container with access to the GPUs",
        )
    busy, names = [], []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        names.append(f"{torch.cuda.get_device_name(index)}, {decimal(total)}")
        if free < total / 2:
            busy.append(f"GPU {index} has {decimal(free)} of {decimal(total)} free")
        # Fails if torch was built without kernels for this GPU.
        product = torch.ones(64, 64, device=f"cuda:{index}") @ torch.ones(64, 1, device=index)
        if product.sum().item() != 64 * 64:
            return failed(f"{names[-1]}: wrong result of a matrix product", "test this GPU")
    nccl_version: Callable[[], tuple[int, ...]] = torch.cuda.nccl.version
    nccl = ".".join(map(str, nccl_version()))
    found = f"{'; '.join(names)}; driver {driver}, CUDA {cuda}, NCCL {nccl}"
    if busy:
        return warning(f"{found}; {'; '.join(busy)}", "nvidia-smi shows which processes use it")
    return ok(found)


def check_cores() -> Outcome:
    total, allowed = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    usable = min(allowed, cgroup_cpu_limit() or allowed)
    if usable < total:
        return warning(
            f"{usable:g} of {total} usable",
            f"set cluster.threads_per_worker to {max(1, int(usable))} divided by the workers on "
            "this machine; otherwise torch starts too many threads",
        )
    return ok(str(total))


def check_memory() -> Outcome:
    limit, free = memory_limit_and_free()
    found = f"{decimal(free)} free of {decimal(limit)}"
    if free < LOW_MEMORY:
        return warning(found, "stop other programs, or raise the container's limit")
    return ok(found)


def check_disk(folder: Path) -> Outcome:
    """Checks the free space of the disk on which `folder` is or will be."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    found = f"{folder}: {decimal(usage.free)} free of {decimal(usage.total)}"
    advice = "free some space, or set TMPDIR (for Ray: RAY_TMPDIR) to a folder on another disk"
    if usage.free < MIN_DISK:
        return failed(found, advice)
    if usage.free < LOW_DISK or usage.used > DISK_CAPACITY_THRESHOLD * usage.total:
        return warning(found, advice)
    return ok(found)


def check_shared_memory() -> Outcome:
    if not SHM_DIR.is_dir():
        return skipped(f"no {SHM_DIR} on this system")
    usage = shutil.disk_usage(SHM_DIR)
    needed = int(min(OBJECT_STORE_FRACTION * memory_limit_and_free()[0], MAX_OBJECT_STORE))
    found = f"{SHM_DIR}: {decimal(usage.free)} free of {decimal(usage.total)}"
    if usage.free < needed:
        return warning(
            f"{found}; Ray's object store needs {decimal(needed)} and would use the disk instead",
            "give a container --shm-size or a memory volume at /dev/shm, or start Ray with a "
            "smaller --object-store-memory",
        )
    return ok(f"{found}; Ray's object store needs {decimal(needed)}")


def check_open_files() -> Outcome:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    soft, hard = (RAY_OPEN_FILES if limit == unlimited else limit for limit in (soft, hard))
    message = f"limit {soft}, can be raised to {hard}"
    if max(soft, min(hard, RAY_OPEN_FILES)) < MIN_OPEN_FILES:
        return warning(message, f"run ulimit -n {RAY_OPEN_FILES} before starting Ray")
    return ok(message)


def _read_requirements(extra: str = "") -> tuple[str, list[Requirement]]:
    """Returns the required Python and packages: of the checkout, else of the installed package.

    Args:
        extra: whose packages are required too.
    """
    path = ROOT / "pyproject.toml"
    if path.exists():
        project = tomllib.loads(path.read_text()).get("project", {})
        if project.get("name") == "segan":
            lines = project["dependencies"] + project.get("optional-dependencies", {}).get(
                extra, []
            )
            return project["requires-python"], [Requirement(line) for line in lines]
    installed = metadata.distribution("segan")
    requirements = [Requirement(line) for line in installed.requires or []]
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": extra})]
    return installed.metadata["Requires-Python"], needed


def _version_mismatches(requirements: Iterable[Requirement]) -> list[str]:
    """Describes the installed packages whose version differs from the required one."""
    return [
        f"{requirement.name} {found}, expected {requirement.specifier}"
        for requirement in requirements
        if (found := _installed_version(requirement.name))
        and not requirement.specifier.contains(found, prereleases=True)
    ]


def _installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _nvidia_driver_version() -> str | None:
    """Returns the version of the NVIDIA driver, or None if it is not installed."""
    if not NVIDIA_VERSION_FILE.exists():
        return None
    words = NVIDIA_VERSION_FILE.read_text().splitlines()[0].split()
    numbers = [word for word in words if word[0].isdigit() and "." in word]
    return numbers[0] if numbers else "(version unknown)"
