"""The Ray head requires its token, and leaves no processes behind."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from infra.local.cluster import RayCluster
from infra.local.s3 import S3Server
from infra.local.supervise import descendants
from tests.infra.process_utils import (
    all_exited,
    child_process,
    listening_addresses,
    read_line,
    wait_for,
)

pytestmark = pytest.mark.cluster


def test_workers_have_the_s3_credentials_and_endpoint(
    ray_session: RayCluster, s3: S3Server
) -> None:
    @ray.remote
    def environment_of_a_worker() -> dict[str, str]:
        return dict(os.environ)

    seen = ray.get(environment_of_a_worker.remote())
    assert s3.environment.items() <= seen.items()
    assert seen["RAY_AUTH_MODE"] == "token"


def test_it_has_the_logical_cpus_asked_for(ray_session: RayCluster) -> None:
    assert ray.cluster_resources()["CPU"] == 4


def test_it_listens_on_loopback_only(ray_session: RayCluster) -> None:
    pids = [ray_session.pid, *descendants(ray_session.pid)]
    assert {address for address, _ in listening_addresses(pids)} == {"127.0.0.1"}


def test_only_the_owner_can_read_the_token_and_the_logs(ray_session: RayCluster) -> None:
    assert stat.S_IMODE(ray_session.token_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(ray_session.folder.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_a_driver_without_the_token_is_refused(
    ray_session: RayCluster, tmp_path: Path, token: str | None
) -> None:
    environment = {
        **os.environ,
        "HOME": str(tmp_path),  # without a token
        "RAY_NUM_REDIS_GET_RETRIES": "1",  # with the default it retries for 20 s
    }
    del environment["RAY_AUTH_TOKEN_PATH"]
    if token is None:
        del environment["RAY_AUTH_MODE"]
    else:
        environment["RAY_AUTH_TOKEN"] = token
    driver = subprocess.run(
        [sys.executable, "-c", "import ray; ray.init(); print('in')"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert driver.returncode != 0
    assert "in" not in driver.stdout.split()
    assert "InvalidAuthToken" in driver.stderr


def test_the_dashboard_requires_the_token(ray_session: RayCluster) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{ray_session.dashboard}/api/v0/nodes")
    assert refusal.value.code == 401


HEAD_AND_DRIVER = """
import os, subprocess, sys, time
from pathlib import Path
from infra.local.cluster import ray_cluster

task = '''
import ray, subprocess
ray.init()

@ray.remote
def leave_an_orphan_behind():
    script = "setsid sleep 1000 > /dev/null 2>&1 & echo $!"
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout.strip()

print(ray.get(leave_an_orphan_behind.remote()), flush=True)
'''
with ray_cluster(Path(sys.argv[1]), 1, {}) as cluster:
    environment = os.environ | cluster.environment
    subprocess.run([sys.executable, "-c", task], env=environment, check=True)
    print(cluster.folder, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for Ray's sockets; those of pytest may be too long."""
    with tempfile.TemporaryDirectory(prefix="test-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("end", ["in good order", "by SIGKILL"])
def test_no_process_is_left(short_folder: Path, end: str) -> None:
    folder = short_folder
    if end == "in good order":
        folder = folder / ("long" * 10)  # too long for Ray's own folder
    command = [sys.executable, "-c", HEAD_AND_DRIVER, str(folder)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_A")}
    with child_process(command, environment) as parent:
        orphan, ray_folder = int(read_line(parent)), Path(read_line(parent))
        pids = descendants(parent.pid)
        assert orphan in pids
        assert len(pids) > 10
        if end == "in good order":
            parent.communicate("\n")
    assert parent.returncode == (0 if end == "in good order" else -signal.SIGKILL)
    assert wait_for(lambda: all_exited(pids), 30)
    assert ray_folder.is_relative_to(folder) == ray_folder.exists() == (end == "by SIGKILL")
