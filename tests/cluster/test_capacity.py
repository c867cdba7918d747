"""The capacity of real nodes: runs that do not fit are refused with numbers, or wait for nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.local.cluster import RayCluster, ray_cluster, ray_node
from infra.local.namespaces import Namespace
from tests.infra.process_utils import child_process

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

QUERY_PROGRAM = """
import sys
from ray_jobs.cluster.capacity import max_concurrent_runs, resolve_cluster_device
from ray_jobs.cluster.connect import connect
from segan.config import load_config
from segan.errors import UsageError
connect()
for overrides in sys.argv[1:]:
    config = load_config(None, [f"cluster.{override}" for override in overrides.split()])
    try:
        print(max_concurrent_runs(resolve_cluster_device(config.cluster)), flush=True)
    except UsageError as error:
        print(error, flush=True)
"""


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """This process connects to no cluster."""


def query_command(*questions: str) -> list[str]:
    return [sys.executable, "-c", QUERY_PROGRAM, *questions]


def query_capacity(cluster: RayCluster, *questions: str) -> list[str]:
    environment = os.environ | cluster.environment
    done = subprocess.run(
        query_command(*questions), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_refused_at_once_or_waited_for(
    make_hosts: Callable[..., list[Namespace]], tmp_path: Path
) -> None:
    (host,) = make_hosts("all")
    ip = host.ip
    with host.enter(), ray_cluster(tmp_path / "ray", 0, {}, ip=ip) as cluster:
        (message,) = query_capacity(cluster, "workers=2")
        assert (
            "2 workers of 1 CPU plus 1 CPU for reading data: 3 CPUs required, 0 available"
            in message
        )
        command = query_command("workers=2 gpus_per_worker=1 resource_timeout_s=200")
        with (
            child_process(command, os.environ | cluster.environment) as waiting,
            ray_node(cluster, tmp_path / "one", 8, {}, ip, num_gpus=2),
        ):
            stdout, _ = waiting.communicate()
            assert stdout == "1\n"
            # 8 CPUs, one of them for reading data, fit 3 runs of 2 workers with 1 CPU each; but the
            # 2 GPUs, which a run takes if nothing else is said, fit one.
            few, on_gpus, single_node, too_many = query_capacity(
                cluster,
                "workers=2 device=cpu",
                "workers=2",
                "workers=1 gpus_per_worker=2",
                "workers=2 gpus_per_worker=2",
            )
            assert (few, on_gpus, single_node) == ("3", "1", "1")
            assert "2 workers of 2 GPUs: 4 GPUs required, 2 available" in too_many
            with ray_node(cluster, tmp_path / "two", 1, {}, ip, num_gpus=1):
                (split,) = query_capacity(cluster, "workers=1 gpus_per_worker=3")
            assert (
                "1 worker of 1 CPU and 3 GPUs, each on a single node: the nodes have room" in split
            )


DRY_RUN = [sys.executable, "-m", "infra.local.dry_run", "--cpus", "9", "cluster.workers=8"]


@pytest.mark.parametrize(
    ("nodes", "code", "output"),
    [(4, 0, "node 4 │       2"), (1, 2, "8 workers of 1 GPU: 8 GPUs required, 2 available")],
)
def test_eight_gpus_on_nodes_of_two(
    make_hosts: Callable[..., list[Namespace]], nodes: int, code: int, output: str
) -> None:
    make_hosts("probe")
    arguments = ["cluster.gpus_per_worker=1", "--nodes", str(nodes), "--gpus", "2"]
    done = subprocess.run(DRY_RUN + arguments, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert output in done.stdout + done.stderr
