"""Two DDP workers on two nodes with their own addresses, and the bucket on a fourth host.

If a node is disconnected, an elastic run continues on the other, and a fixed one reports why not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.local.cluster import ray_cluster, ray_node
from infra.local.namespaces import INTERFACE, Namespace
from infra.local.processes import find_executable
from infra.local.s3 import S3Server, s3_server
from segan.runs.run import Run
from tests.cluster.job_client import JobClient, poll_until
from tests.environment import temporary_environment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

BUCKET = "s3://node-tests"
RUN = Run(f"{BUCKET}/run")
TRAIN = (
    f"train {RUN} data.records={BUCKET}/records network.width=2 augment.crop=64 "
    "training.batch_size=4 cluster.threads_per_worker=1 cluster.workers=2 cluster.cpus_per_worker=2"
)
# More epochs than a test lasts, with a checkpoint at every step.
ENDLESS_TRAIN = (
    f"{TRAIN} training.epochs=100000 training.validate_every_epochs=100000 "
    f"training.checkpoint_every_steps=1"
)
PROGRESS_TIMEOUT_S = 300  # for the next step or the end; after that the run hangs


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """This process connects to no cluster."""


@pytest.fixture
def hosts(make_hosts: Callable[..., list[Namespace]]) -> list[Namespace]:
    return make_hosts("head", "one", "two", "store")


@pytest.fixture
def store(hosts: list[Namespace], tmp_path: Path) -> Iterator[S3Server]:
    store = hosts[3]
    with store.enter(), s3_server(tmp_path / "s3", store.ip) as server:
        server.create_bucket(BUCKET.removeprefix("s3://"))
        yield server


@pytest.fixture
def client(hosts: list[Namespace], store: S3Server, tmp_path: Path) -> Iterator[JobClient]:
    """A head without CPUs and two nodes, each with CPUs for a worker of 2 CPUs and for data."""
    environment = store.environment | {"GLOO_SOCKET_IFNAME": INTERFACE}
    head, *nodes = hosts[:3]
    with ExitStack() as stack:
        with head.enter():
            cluster = stack.enter_context(ray_cluster(tmp_path / "ray", 0, environment, ip=head.ip))
        for number, node in enumerate(nodes):
            with node.enter():
                folder = tmp_path / f"node-{number}"
                stack.enter_context(ray_node(cluster, folder, 3, environment, ip=node.ip))
        yield JobClient(cluster)


@pytest.fixture
def records(hosts: list[Namespace], store: S3Server) -> None:
    counts = ("--train", "20", "--validation", "4", "--test", "0", "--short-side", "64")
    with hosts[0].enter():
        segan(store.environment, "synth", f"{BUCKET}/archive", *counts)
        segan(store.environment, "ingest", f"{BUCKET}/archive", f"{BUCKET}/records", "--local")


def segan(environment: Mapping[str, str], *arguments: str) -> Any:
    command = [sys.executable, "-m", "segan", *arguments]
    done = subprocess.run(
        command, env=os.environ | dict(environment), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "--json" in arguments else None


@pytest.mark.usefixtures("records")
def test_one_rank_on_each_of_two_nodes(
    hosts: list[Namespace], store: S3Server, client: JobClient
) -> None:
    with hosts[0].enter():
        code, output = client.submit("train", f"{TRAIN} training.epochs=2")
        assert code == 0, output
        found = segan(store.environment, "runs", "show", f"{RUN}", "--json")
        nodes = client.request_api("v0/nodes")["data"]["result"]["result"]
        actors = client.request_api("v0/actors?detail=1&limit=1000")["data"]["result"]["result"]
    assert found["hardware"].startswith("2 workers, 1 on a node of ")
    assert [line["epoch"] for line in found["epochs"]] == [1, 2]
    address = {node["node_id"]: node["node_ip"] for node in nodes}
    workers = [actor for actor in actors if actor["class_name"] == "RayTrainWorker"]
    assert sorted(address[worker["node_id"]] for worker in workers) == [hosts[1].ip, hosts[2].ip]


def latest_step() -> int:
    latest = RUN.latest_checkpoint()
    return latest.info.progress["step"] if latest else 0


@contextmanager
def running_driver(
    head: Namespace, store: S3Server, client: JobClient, *overrides: str
) -> Iterator[subprocess.Popen[str]]:
    """A driver on the head whose training runs on both nodes."""
    command = [sys.executable, "-m", "segan", *ENDLESS_TRAIN.split(), *overrides]
    environment = os.environ | store.environment | client.cluster.environment
    with (
        head.enter(),
        temporary_environment(store.environment),
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as driver,
    ):
        try:
            assert poll_until(200, latest_step), "no step was done"
            yield driver
        finally:
            driver.kill()


@pytest.mark.usefixtures("records")
def test_an_elastic_run_continues_without_a_node_and_ends_without_any(
    hosts: list[Namespace], store: S3Server, client: JobClient
) -> None:
    elastic = ("cluster.min_workers=1", "cluster.resource_timeout_s=10")
    with running_driver(hosts[0], store, client, *elastic) as driver:
        hosts[2].disconnect()
        time.sleep(1)  # for the current step
        began, before = time.monotonic(), latest_step()
        assert poll_until(PROGRESS_TIMEOUT_S, lambda: latest_step() > before), (
            "the run does not continue"
        )
        print(f"from the disconnection to the next step: {time.monotonic() - began:.0f} s")
        assert driver.poll() is None
        hosts[1].disconnect()
        _, stderr = driver.communicate(timeout=PROGRESS_TIMEOUT_S)
        assert driver.returncode == 2
        assert "1 worker of 2 CPUs" in stderr.splitlines()[-1]
        assert stderr.splitlines()[-1].endswith("; nodes have not come back")


@pytest.mark.usefixtures("records")
def test_a_run_of_fixed_size_reports_the_missing_workers(
    hosts: list[Namespace], store: S3Server, client: JobClient
) -> None:
    with running_driver(hosts[0], store, client, "cluster.max_failures=1") as driver:
        hosts[2].disconnect()
        _, stderr = driver.communicate(timeout=PROGRESS_TIMEOUT_S)
        assert driver.returncode == 1
        assert "2 workers" in stderr.splitlines()[-1]


@pytest.mark.usefixtures("records")
def test_a_drained_node_is_left_after_a_checkpoint_without_a_failure(
    hosts: list[Namespace], store: S3Server, client: JobClient
) -> None:
    """A worker on a node with a preemption notice continues on the other node."""
    command = f"{TRAIN} cluster.workers=1 cluster.cpus_per_worker=1 cluster.max_failures=0"
    command += " training.epochs=50 training.log_every_steps=1"
    undisturbed = Run(f"{BUCKET}/undisturbed")
    with hosts[0].enter(), temporary_environment(store.environment):
        with client.start("drained", command) as submitting:
            assert poll_until(300, RUN.latest_checkpoint), "no checkpoint came"
            (before,) = worker_node_ids(client)
            drain_node(client, before)
            assert poll_until(60, lambda: worker_node_ids(client) - {before}), "no other node"
            output, _ = submitting.communicate(timeout=600)
        assert submitting.returncode == 0, output
        segan(store.environment, *command.replace(RUN.uri, undisturbed.uri).split(), "--local")
        steps = [line["step"] for line in RUN.metrics() if line["kind"] == "step"]
        assert steps == list(range(1, 50 * 20 // 4 + 1))
        latest, other = RUN.latest_checkpoint(), undisturbed.latest_checkpoint()
        assert latest is not None
        assert other is not None
        assert latest.files == other.files


def worker_node_ids(client: JobClient) -> set[str]:
    """The ids of the nodes with live workers of Ray Train."""
    actors = client.request_api("v0/actors?detail=1&limit=1000")["data"]["result"]["result"]
    return {
        actor["node_id"]
        for actor in actors
        if actor["class_name"] == "RayTrainWorker" and actor["state"] == "ALIVE"
    }


def drain_node(client: JobClient, node: str) -> None:
    """Announces, like a spot notice, that the node will be gone in a minute."""
    subprocess.run(
        [
            find_executable("ray"),
            "drain-node",
            f"--address={client.cluster.address}",
            f"--node-id={node}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=a test",
            "--deadline-remaining-seconds=60",
        ],
        env=os.environ | client.cluster.environment,
        check=True,
        capture_output=True,
    )
