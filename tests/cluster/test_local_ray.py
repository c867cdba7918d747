"""The Ray that a command starts if it finds no cluster, in a user's environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(200)]

PROGRAM = """
import psutil
import ray
from segan.cli.commands.options import join_cluster

join_cluster(False)
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
addresses = {
    connection.laddr.ip.removeprefix("::ffff:")
    for process in processes
    for connection in process.net_connections("inet")
    if connection.status == psutil.CONN_LISTEN
}
print(sorted(addresses), len(processes) > 3)
ray.shutdown()
"""


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """This process connects to no cluster."""


def test_it_listens_on_loopback_alone_with_a_token_for_its_user(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    # As in a command that trains, ray_jobs has been imported before.
    program = "import ray_jobs.tuning.study\n" + PROGRAM
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert "['127.0.0.1'] True" in done.stderr.splitlines(), done.stderr
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
