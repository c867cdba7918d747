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
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from infra.local.cluster import ray_cluster, ray_node
from infra.local.namespaces import INTERFACE, Namespace
from infra.local.processes import find_executable
from infra.local.s3 import S3Server, s3_server
from segan import storage
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, ingest, local_executor
from segan.data.synthetic import generate_archive
from segan.runs.run import Run
from tests.cluster.conftest import hosts_or_skip
from tests.cluster.job_client import JobClient, poll_until
from tests.environment import temporary_environment

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

BUCKET = "s3://node-tests"
# The arguments of `train` after the run.
OPTIONS = (
    f"data.records={BUCKET}/records network.width=2 augment.crop=64 "
    "training.batch_size=4 cluster.threads_per_worker=1 cluster.workers=2 cluster.cpus_per_worker=2"
)
# More epochs than a test lasts, with a checkpoint at every step.
ENDLESS_OPTIONS = (
    f"{OPTIONS} training.epochs=100000 training.validate_every_epochs=100000 "
    f"training.checkpoint_every_steps=1"
)
PROGRESS_TIMEOUT_S = 300  # for the next step or the end; after that the run hangs


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """This process connects to no cluster."""


@dataclass
class Node:
    """A node of the cluster on a host of its own.

    Attributes:
        lost: it is not running, or was disconnected or drained, and would not come back.
    """

    host: Namespace
    start: Callable[[], AbstractContextManager[None]]
    running: ExitStack = field(default_factory=ExitStack)
    lost: bool = True

    def disconnect(self) -> None:
        self.lost = True
        self.host.disconnect()

    def restart(self) -> None:
        """Starts it again on its host, which is connected first."""
        self.running.close()
        self.host.reconnect()
        with self.host.enter():
            self.running.enter_context(self.start())
        self.lost = False


@dataclass(frozen=True)
class Cluster:
    """A head without CPUs, two nodes with CPUs for a worker of 2 CPUs and for data, and a store."""

    head: Namespace
    nodes: list[Node]
    store: S3Server
    client: JobClient


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The hosts, the store with records, and the head; the nodes are not started."""
    folder = tmp_path_factory.mktemp("nodes")
    with ExitStack() as stack:
        head, *hosts, last = stack.enter_context(hosts_or_skip("head", "one", "two", "store"))
        with last.enter():
            store = stack.enter_context(s3_server(folder / "s3", last.ip))
            store.create_bucket(BUCKET.removeprefix("s3://"))
        environment = store.environment | {"GLOO_SOCKET_IFNAME": INTERFACE}
        with head.enter():
            ray = stack.enter_context(ray_cluster(folder / "ray", 0, environment, ip=head.ip))
            with temporary_environment(store.environment):
                write_records()
        nodes = []
        for number, host in enumerate(hosts):
            start = partial(ray_node, ray, folder / f"node-{number}", 3, environment, host.ip)
            nodes.append(Node(host, start))
            stack.callback(nodes[-1].running.close)
        yield Cluster(head, nodes, store, JobClient(ray))


def write_records() -> None:
    archive = f"{BUCKET}/archive"
    counts = {"train": 20, "validation": 4}
    generate_archive(
        counts, 0, lambda name, body: storage.write_bytes(f"{archive}/{name}", body), 64
    )
    ingest(open_archive(archive), f"{BUCKET}/records", IngestOptions(), local_executor(1))


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """The cluster with both nodes, and without what an earlier test has left."""
    client = shared_cluster.client
    for node in shared_cluster.nodes:
        if node.lost:
            node.restart()
    with shared_cluster.head.enter():
        # A lost node counts as alive for a while, and a killed driver's workers too.
        assert poll_until(90, lambda: len(client.cluster.alive_node_ids()) == 3)
        assert poll_until(60, lambda: not worker_node_ids(client))
    return shared_cluster


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Run:
    """A run of this test alone."""
    return Run(f"{BUCKET}/{request.node.originalname}")


def segan(environment: Mapping[str, str], *arguments: str) -> Any:
    command = [sys.executable, "-m", "segan", *arguments]
    done = subprocess.run(
        command, env=os.environ | dict(environment), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "--json" in arguments else None


def test_one_rank_on_each_of_two_nodes(cluster: Cluster, run: Run) -> None:
    with cluster.head.enter():
        before = {actor["actor_id"] for actor in list_workers(cluster.client)}
        code, output = cluster.client.submit("train", f"train {run} {OPTIONS} training.epochs=2")
        assert code == 0, output
        found = segan(cluster.store.environment, "runs", "show", f"{run}", "--json")
        nodes = list_nodes(cluster.client)
        workers = [w for w in list_workers(cluster.client) if w["actor_id"] not in before]
    assert found["hardware"].startswith("2 workers, 1 on a node of ")
    assert [line["epoch"] for line in found["epochs"]] == [1, 2]
    address = {node["node_id"]: node["node_ip"] for node in nodes}
    assert sorted(address[worker["node_id"]] for worker in workers) == [
        node.host.ip for node in cluster.nodes
    ]


def latest_step(run: Run) -> int:
    latest = run.latest_checkpoint()
    return latest.info.progress["step"] if latest else 0


@contextmanager
def running_driver(cluster: Cluster, run: Run, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """A driver on the head whose training runs on both nodes."""
    command = [sys.executable, "-m", "segan", "train", f"{run}", *ENDLESS_OPTIONS.split()]
    store = cluster.store.environment
    environment = os.environ | store | cluster.client.cluster.environment
    with (
        cluster.head.enter(),
        temporary_environment(store),
        subprocess.Popen(
            [*command, *overrides], env=environment, stderr=subprocess.PIPE, text=True
        ) as driver,
    ):
        try:
            assert poll_until(200, lambda: latest_step(run)), "no step was done"
            yield driver
        finally:
            driver.kill()


def test_a_drained_node_is_left_after_a_checkpoint_without_a_failure(
    cluster: Cluster, run: Run
) -> None:
    """A worker on a node with a preemption notice continues on the other node."""
    options = f"{OPTIONS} cluster.workers=1 cluster.cpus_per_worker=1 cluster.max_failures=0"
    options += " training.epochs=50 training.log_every_steps=1"
    client, undisturbed = cluster.client, Run(f"{BUCKET}/undisturbed")
    with cluster.head.enter(), temporary_environment(cluster.store.environment):
        with client.start("drained", f"train {run} {options}") as submitting:
            assert poll_until(300, run.latest_checkpoint), "no checkpoint came"
            (before,) = worker_node_ids(client)
            (drained,) = [n for n in list_nodes(client) if n["node_id"] == before]
            for node in cluster.nodes:
                node.lost |= node.host.ip == drained["node_ip"]
            drain_node(client, before)
            assert poll_until(60, lambda: worker_node_ids(client) - {before}), "no other node"
            output, _ = submitting.communicate(timeout=600)
        assert submitting.returncode == 0, output
        segan(cluster.store.environment, "train", f"{undisturbed}", *options.split(), "--local")
        steps = [line["step"] for line in run.metrics() if line["kind"] == "step"]
        assert steps == list(range(1, 50 * 20 // 4 + 1))
        latest, other = run.latest_checkpoint(), undisturbed.latest_checkpoint()
        assert latest is not None
        assert other is not None
        assert latest.files == other.files


def test_a_run_of_fixed_size_reports_the_missing_workers(cluster: Cluster, run: Run) -> None:
    with running_driver(cluster, run, "cluster.max_failures=1") as driver:
        cluster.nodes[1].disconnect()
        _, stderr = driver.communicate(timeout=PROGRESS_TIMEOUT_S)
        assert driver.returncode == 1
        assert "2 workers" in stderr.splitlines()[-1]


def test_an_elastic_run_continues_without_a_node_and_ends_without_any(
    cluster: Cluster, run: Run
) -> None:
    elastic = ("cluster.min_workers=1", "cluster.resource_timeout_s=10")
    with running_driver(cluster, run, *elastic) as driver:
        cluster.nodes[1].disconnect()
        time.sleep(1)  # for the current step
        before = latest_step(run)
        assert poll_until(PROGRESS_TIMEOUT_S, lambda: latest_step(run) > before), (
            "the run does not continue"
        )
        assert driver.poll() is None
        cluster.nodes[0].disconnect()
        _, stderr = driver.communicate(timeout=PROGRESS_TIMEOUT_S)
        assert driver.returncode == 2
        assert "1 worker of 2 CPUs" in stderr.splitlines()[-1]
        assert stderr.splitlines()[-1].endswith("; nodes have not come back")


def list_nodes(client: JobClient) -> list[dict[str, Any]]:
    """The nodes of the cluster, alive or not."""
    return client.request_api("v0/nodes")["data"]["result"]["result"]


def list_workers(client: JobClient) -> list[dict[str, Any]]:
    """The workers of Ray Train, alive or not."""
    actors = client.request_api("v0/actors?detail=1&limit=1000")["data"]["result"]["result"]
    return [actor for actor in actors if actor["class_name"] == "RayTrainWorker"]


def worker_node_ids(client: JobClient) -> set[str]:
    """The ids of the nodes with live workers of Ray Train."""
    return {w["node_id"] for w in list_workers(client) if w["state"] == "ALIVE"}


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
