"""`segan doctor` on this machine as it is, and with fewer resources."""

import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from segan.cli.main import main
from segan.doctor import checks, machine
from segan.doctor.checks import Check, Outcome, failed, ok, run_checks, skipped, warning
from segan.errors import SeganError
from segan.utils import resources
from tests.doctor.command import run_doctor

GB = 10**9


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def status(outcome: Outcome) -> str:
    return outcome.status.value


# The command


def test_the_command_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = run_doctor(capsys)
    version = ".".join(map(str, sys.version_info[:3]))
    assert found["python"].startswith(f"ok | {version} on Linux ")
    assert found["packages"].startswith("ok | ")
    assert found["storage"] == "skipped | not checked | give a folder or bucket with --uri"
    failing = [name for name, line in found.items() if line.startswith("failed")]
    assert code == bool(failing)
    assert (", ".join(failing) in err) if failing else "segan:" not in err


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["doctor", "--uri", str(tmp_path)])
    out = capsys.readouterr().out
    assert "shared memory" in out
    assert "advice" in out


def test_a_failed_check_gives_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(small_disk))
    code, found, err = run_doctor(capsys)
    assert code == 1
    assert found["Ray's folder"] == (
        f"failed | {small_disk}/ray: 1.0 MB free of 1.0 MB | free some space, or set TMPDIR "
        "(for Ray: RAY_TMPDIR) to a folder on another disk"
    )
    assert err.splitlines()[-1].startswith("segan: 1 of ")
    assert err.splitlines()[-1].endswith(" checks failed: Ray's folder")


def test_importing_the_checks_imports_neither_ray_nor_torch() -> None:
    program = (
        "import sys, segan.doctor.machine, segan.doctor.storage, ray_jobs.cluster.doctor;"
        "sys.exit(bool({'ray', 'torch'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# Checks


def test_a_check_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")

    def user_error() -> Outcome:
        raise SeganError("runs/a: expected this, found s3cr3t; do that")

    def bug() -> Outcome:
        raise LookupError("two\nlines")

    released = threading.Event()

    def slow() -> Outcome:
        released.wait()  # forever, if the checks wait for it
        return ok("")

    outcomes = run_checks(
        [
            Check("user error", user_error),
            Check("bug", bug),
            Check("slow", slow, timeout_s=0.2),
            Check("well", lambda: ok("all")),
            Check("after a failure", lambda: ok("all"), requires="slow"),
            Check("after a success", lambda: ok("all"), requires="well"),
        ]
    )
    assert list(outcomes) == [
        ("user error", failed("runs/a: expected this, found <AWS_SECRET_ACCESS_KEY>; do that")),
        ("bug", failed("LookupError: two lines")),
        ("slow", failed("not finished after 0.2 s", "try again later")),
        ("well", ok("all")),
        ("after a failure", skipped("not run, because 'slow' did not pass")),
        ("after a success", ok("all")),
    ]
    released.set()


@pytest.mark.parametrize("name", checks.SECRET_VARIABLES)
def test_secrets_are_redacted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "0123456789abcdef")
    check = Check("c", lambda: warning(*2 * ["x0123456789abcdefy"]))
    assert list(run_checks([check])) == [("c", warning(*2 * [f"x<{name}>y"]))]


# Python and packages


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    return tmp_path


def write_pyproject(folder: Path, python: str, *packages: str) -> None:
    text = (
        f'[project]\nname = "segan"\nrequires-python = "{python}"\ndependencies = {[*packages]}\n'
    )
    (folder / "pyproject.toml").write_text(text)


def test_unmet_requirements_fail(checkout: Path) -> None:
    wanted = ["numpy>=1", "pillow<2", "nowhere", "torch; sys_platform == 'win32'"]
    write_pyproject(checkout, ">=4", *wanted)
    assert status(machine.check_python()) == "failed"
    assert machine.check_python().message.endswith(", expected >=4")
    outcome = machine.check_packages()
    assert status(outcome) == "failed"
    nowhere, pillow = outcome.message.split("; ")
    assert pillow.startswith("pillow ")
    assert pillow.endswith(", expected <2")
    assert nowhere == "nowhere is missing"
    write_pyproject(checkout, ">=3.11", "numpy>=1")
    assert machine.check_packages() == ok("1 installed as required")


def test_without_a_checkout_the_installed_metadata_is_used(checkout: Path) -> None:
    assert status(machine.check_python()) == "ok"
    assert status(machine.check_packages()) == "ok"
    assert status(machine.check_tested_versions()) == "skipped"


def test_untested_versions_give_a_warning(checkout: Path) -> None:
    (checkout / "constraints.txt").write_text("numpy==0.1\nnowhere==1\n")
    outcome = machine.check_tested_versions()
    assert status(outcome) == "warning"
    assert outcome.message.startswith("numpy ")
    assert outcome.message.endswith(", expected ==0.1")


# Limits


def test_no_disk(small_disk: Path) -> None:
    assert status(machine.check_disk(small_disk / "not" / "made" / "yet")) == "failed"


def test_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(total: int, free: int) -> None:
        disk = (total * GB, (total - free) * GB, free * GB)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: type(found)(*disk))

    found = shutil.disk_usage(tmp_path)
    for total, free, expected in ((100, 11, "ok"), (100, 9, "warning"), (900, 30, "warning")):
        usage(total, free)
        assert status(machine.check_disk(tmp_path)) == expected


def test_little_shared_memory(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SHM_DIR", small_disk)
    outcome = machine.check_shared_memory()
    assert status(outcome) == "warning"
    assert "--shm-size" in outcome.advice
    monkeypatch.setattr(machine, "SHM_DIR", small_disk / "none")
    assert status(machine.check_shared_memory()) == "skipped"


def test_few_open_files() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, {}));"
        "from segan.doctor.machine import check_open_files; print(check_open_files().status)"
    )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < machine.MIN_OPEN_FILES:
        pytest.skip(f"this machine allows {hard} open files only")
    for limit, expected in ((1024, "warning"), (machine.MIN_OPEN_FILES, "ok")):
        command = [sys.executable, "-c", program.format(limit)]
        assert subprocess.check_output(command, text=True).strip() == expected


def test_fewer_cores_than_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("this machine has one core")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        outcome = machine.check_cores()
    finally:
        os.sched_setaffinity(0, allowed)
    assert status(outcome) == "warning"
    assert outcome.message == f"1 of {os.cpu_count()} usable"
    assert outcome.advice.startswith("set cluster.threads_per_worker to 1 ")


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        (
            "0::/pod/container\n",
            {
                "cpu.max": "max 100000",
                "pod/cpu.max": "150000 100000",
                "pod/container/cpu.max": "400000 100000",
                "memory.max": "max",
                "memory.current": "1",
                "pod/container/memory.max": "2000000000",
                "pod/container/memory.current": "1500000000",
            },
        ),
        (  # seen from a container: the path is the host's, the files are at the top
            "0::/kubepods/pod1/c1\n",
            {
                "cpu.max": "150000 100000",
                "memory.max": "2000000000",
                "memory.current": "1500000000",
            },
        ),
        (
            "5:memory:/pod\n4:cpu,cpuacct:/pod\n3:name=systemd:/x\n0::/\n",
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "cpu/pod/cpu.cfs_quota_us": "150000",
                "cpu/pod/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "1600000000",
                "memory/pod/memory.limit_in_bytes": "2000000000",
                "memory/pod/memory.usage_in_bytes": "1500000000",
            },
        ),
    ],
    ids=["version 2", "container", "version 1"],
)
def test_container_limits_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str]
) -> None:
    (tmp_path / "groups").write_text(groups)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    monkeypatch.setattr(resources, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(resources, "PROC_CGROUP", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert resources.cgroup_cpu_limit() == 1.5
    assert resources.usable_cpus() == 1
    assert resources.cgroup_memory_usage() == (2 * GB, 3 * GB // 2)
    outcome = machine.check_memory()
    assert status(outcome) == "warning"
    assert outcome.message == "500.0 MB free of 2.0 GB"
    assert machine.check_cores().message == f"1.5 of {os.cpu_count()} usable"


# GPUs: on a machine with one, `segan doctor` itself is the test


def test_without_a_gpu_the_check_is_skipped() -> None:
    import torch

    if torch.cuda.is_available() or machine.NVIDIA_VERSION_FILE.exists():
        pytest.skip("this machine has a GPU")
    outcome = machine.check_gpus()
    assert outcome == skipped(f"none; torch {torch.__version__} trains on the CPU")


def test_a_gpu_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch can use the GPU of this machine")
    version = (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:16:01 UTC 2025\n"
        "GCC version:  gcc version 12.3.0\n"
    )
    monkeypatch.setattr(machine, "NVIDIA_VERSION_FILE", tmp_path / "version")
    machine.NVIDIA_VERSION_FILE.write_text(version)
    outcome = machine.check_gpus()
    assert status(outcome) == "failed"
    assert outcome.message.startswith("NVIDIA driver 580.65.06, ")
    assert "torch" in outcome.advice
