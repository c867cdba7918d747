"""The machines of `tests.chaos`: hosts in network namespaces, with Ray and a store on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from infra.local.cluster import RayCluster, ray_cluster, ray_node
from infra.local.namespaces import INTERFACE, Namespace, namespaces
from infra.local.s3 import S3Server, s3_server
from tests.fault_proxy import FaultProxy, run_fault_proxy
from tests.timing import without_timing

BUCKET = "chaos"
ARCHIVE = f"s3://{BUCKET}/archive"
RECORDS = f"s3://{BUCKET}/records"
TRAIN_PAIRS = 24  # of the archive at first
# One process for all queries: starting one for each would use half a core.
QUERY_PROGRAM = """
import json, sys
from segan.errors import SeganError
from segan.runs.run import Run
from segan.storage.lease import read_holder

for line in sys.stdin:
    what, uri = line.split()
    run = Run(uri)
    try:
        latest = run.latest_checkpoint()
        if what == "holder":
            holder = read_holder(uri)
            answer = holder and holder.pid
        elif what == "images":
            answer = latest.samples if latest else 0
        else:
            answer = [dict(latest.files), run.metrics()]
    except SeganError:
        answer = None
    print(json.dumps(answer), flush=True)
"""


class ChaosCluster:
    """The hosts and their servers; each server is restarted on its host."""

    def __init__(self, hosts: list[Namespace], folder: Path):
        self.head, *self.nodes, self.store = hosts
        self.folder = folder
        self.stacks: dict[str, ExitStack] = defaultdict(ExitStack)
        self.server: S3Server
        self.cluster: RayCluster
        self.faults: FaultProxy
        self.query_process: subprocess.Popen[str]
        self.s3_environment: dict[str, str] = {}
        self.total_images = 0  # of a full run

    def start(self) -> None:
        self.start_store()
        with self.store.enter():
            proxy = run_fault_proxy(self.server.endpoint, self.folder, host=self.store.ip)
            self.faults = self.stacks["proxy"].enter_context(proxy)
            self.server.create_bucket(BUCKET)
        self.s3_environment = self.server.environment | {
            "AWS_ENDPOINT_URL": self.faults.endpoint,
            "GLOO_SOCKET_IFNAME": INTERFACE,
        }
        self.start_cluster()
        with self.head.enter():
            self.query_process = subprocess.Popen(
                [sys.executable, "-c", QUERY_PROGRAM],
                env=self.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        self.stacks["asked"].callback(
            self.query_process.communicate
        )  # closes its stdin, which ends it

    def start_store(self) -> None:
        with self.store.enter(), _s3_credentials(self.s3_environment):
            server = s3_server(self.folder / "s3", self.store.ip)
            self.server = self.stacks["store"].enter_context(server)

    def start_cluster(self) -> None:
        with self.head.enter():
            cluster = ray_cluster(self.folder / "ray", 0, self.s3_environment, ip=self.head.ip)
            self.cluster = self.stacks["head"].enter_context(cluster)
        for node in self.nodes:
            self.start_node(node)

    def start_node(self, node: Namespace) -> None:
        with node.enter():
            server = ray_node(
                self.cluster, self.folder / node.name, 3, self.s3_environment, node.ip
            )
            self.stacks[node.name].enter_context(server)

    def stop(self, name: str) -> None:
        """Stops what still runs under this name."""
        self.stacks[name].close()

    def stop_all(self) -> None:
        for name in ("asked", *(node.name for node in self.nodes), "head", "proxy", "store"):
            self.stop(name)

    def environment(self) -> dict[str, str]:
        return os.environ | self.s3_environment | self.cluster.environment

    def segan(self, *arguments: str) -> None:
        """Runs a command on the head, which must succeed."""
        done = self.run_on_head([sys.executable, "-m", "segan", *arguments])
        assert done.returncode == 0, done.stderr

    def run_on_head(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        with self.head.enter():
            return subprocess.run(
                command, env=self.environment(), capture_output=True, text=True, check=False
            )

    def ingest(self, train_pairs: int) -> None:
        """Makes the archive one of so many pairs, and replaces its records."""
        size = ("--train", str(train_pairs), "--validation", "4", "--test", "0")
        self.segan("synth", ARCHIVE, *size, "--short-side", "64")
        self.segan("ingest", ARCHIVE, RECORDS, "--local", "--workers", "1")

    def samples_seen(self, run: str) -> int:
        """The images up to the run's latest checkpoint; 0 if storage does not answer."""
        return int(self._query("images", run) or 0)

    def holder(self, run: str) -> int | None:
        """The process that holds the run's lease; None if there is none, or no answer."""
        pid = self._query("holder", run)
        return None if pid is None else int(pid)

    def outcome(self, run: str) -> tuple[Any, Any]:
        """The last checkpoint's checksums, and the metrics without times."""
        files, lines = self._query("outcome", run)
        return files, without_timing(lines)

    def _query(self, what: str, run: str) -> Any:
        assert self.query_process.stdin is not None
        assert self.query_process.stdout is not None
        self.query_process.stdin.write(f"{what} {run}\n")
        self.query_process.stdin.flush()
        return json.loads(self.query_process.stdout.readline())


@contextmanager
def chaos_cluster(folder: Path) -> Iterator[ChaosCluster]:
    """Starts a ChaosCluster, with records of synthetic images in storage."""
    folder.mkdir(parents=True, exist_ok=True)
    with namespaces(["head", "one", "two", "store"]) as hosts:
        cluster = ChaosCluster(hosts, folder)
        try:
            cluster.start()
            cluster.ingest(TRAIN_PAIRS)
            yield cluster
        finally:
            cluster.stop_all()


@contextmanager
def _s3_credentials(environment: dict[str, str]) -> Iterator[None]:
    """Passes the credentials to a server that is restarted, which reads the environment."""
    given = {name: value for name, value in environment.items() if "KEY" in name}
    os.environ.update(given)
    try:
        yield
    finally:
        for name in given:
            del os.environ[name]
