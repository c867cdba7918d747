"""`make cluster`: starts in the background, writes a file to use it from a shell, and stops."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.background import running_pid
from infra.local.supervise import descendants
from tests.infra.process_utils import all_exited, child_process, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

DRIVER_PROGRAM = """
import boto3, ray
ray.init(logging_level="error")
buckets = [b["Name"] for b in boto3.client("s3").list_buckets()["Buckets"]]
print(ray.cluster_resources()["CPU"] >= 4, buckets)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "cluster"
    run_background("stop", tmp_path / "cluster")


def run_background(action: str, folder: Path) -> str:
    """The stderr of the command, which must succeed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_A"))}
    done = subprocess.run(
        [sys.executable, "-m", "infra.local.background", action, "--folder", str(folder)],
        env=inherited,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_it_starts_once_and_stops_completely(folder: Path) -> None:
    assert run_background("stop", folder) == "not running\n"
    output = run_background("start", folder)
    assert output.startswith("started\n")
    pid, environment = running_pid(folder), folder / "environment"
    assert pid is not None
    assert f"source {environment}" in output
    assert stat.S_IMODE(environment.stat().st_mode) == 0o600
    assert run_background("start", folder) == output.replace("started", "already running")
    assert running_pid(folder) == pid
    bare = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    script = f'. {environment}; exec {sys.executable} -c "$0"'
    done = subprocess.run(
        ["sh", "-c", script, DRIVER_PROGRAM], env=bare, capture_output=True, text=True
    )
    assert done.stdout == "True ['segan']\n", done.stderr
    pids = [pid, *descendants(pid)]
    assert run_background("stop", folder).startswith("stopped")
    assert wait_for(lambda: all_exited(pids))
    assert not environment.exists()
    assert run_background("stop", folder) == "not running\n"


def test_a_stale_pid_of_another_program_is_ignored(folder: Path) -> None:
    folder.mkdir()
    with child_process(["sleep", "1000"], os.environ) as other:
        (folder / "pid").write_text(f"{other.pid}\n")
        assert run_background("stop", folder) == "not running\n"
        time.sleep(0.2)
        assert other.poll() is None
