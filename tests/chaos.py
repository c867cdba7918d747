"""A training with injected faults, compared with the same training without.

    python -m tests.chaos --faults 30 --seed 0 --folder /tmp/chaos

Runs a head without CPUs, two nodes with a worker each, and an S3 server behind a proxy, in four
network namespaces (Linux, root, iproute2). At random moments, by the seed, a process is killed or
frozen, or storage fails for some seconds; what an operator would restart is restarted. The
disturbed run must have bitwise the same weights, optimizer states and metrics as the undisturbed
one. Prints one line per fault with the seconds until the next step; exit code 0 if the runs are
equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from infra.local.cluster import RayCluster, ray_cluster, ray_node
from infra.local.namespaces import INTERFACE, Namespace, namespaces
from infra.local.processes import StartError
from infra.local.s3 import S3Server, s3_server
from tests.fault_proxy import Fault, FaultProxy, run_fault_proxy
from tests.timing import without_timing

BUCKET = "chaos"
RECORDS = f"s3://{BUCKET}/records"
TRAIN = (
    f"data.records={RECORDS} network.width=2 augment.crop=64 training.batch_size=4 "
    "training.checkpoint_every_steps=2 training.log_every_steps=1 cluster.threads_per_worker=1 "
    "cluster.workers=2 cluster.cpus_per_worker=2 cluster.max_failures=3"
)
# One process for all queries: starting one for each would use half a core.
QUERY_PROGRAM = """
import json, sys
from segan.errors import SeganError
from segan.runs.run import Run

for line in sys.stdin:
    what, uri = line.split()
    run = Run(uri)
    try:
        latest = run.latest_checkpoint()
        if what == "images":
            answer = latest.samples if latest else 0
        else:
            answer = [dict(latest.files), run.metrics()]
    except SeganError:
        answer = None
    print(json.dumps(answer), flush=True)
"""
STEP_TIMEOUT_S = 400  # from a fault to the next step; after that the run hangs
WORKER, RAYLET, GCS, WEED = "ray::RayTrainWorker", "raylet/raylet", "gcs_server", "weed"


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
        with self.head.enter():
            done = subprocess.run(
                [sys.executable, "-m", "segan", *arguments],
                env=self.environment(),
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr

    def samples_seen(self, run: str) -> int:
        """The images up to the run's latest checkpoint; 0 if storage does not answer."""
        return int(self._query("images", run) or 0)

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


class RestartingDriver:
    """Runs the same command again until it succeeds."""

    def __init__(self, cluster: ChaosCluster, run: str, *overrides: str):
        self.cluster, self.log = cluster, (cluster.folder / "driver.log").open("a")
        self.command = [sys.executable, "-m", "segan", "train", run, *TRAIN.split(), *overrides]
        self.starts = 0
        self.done = threading.Event()
        self._start()
        self._watcher = threading.Thread(target=self._rerun_until_done, daemon=True)
        self._watcher.start()

    def _start(self) -> None:
        self.starts += 1
        with self.cluster.head.enter():
            self.process = subprocess.Popen(
                self.command, env=self.cluster.environment(), stdout=self.log, stderr=self.log
            )

    def _rerun_until_done(self) -> None:
        while self.process.wait() != 0:
            time.sleep(0.5)
            self._start()
        self.done.set()


class FaultInjector:
    """The faults; what a fault breaks is repaired before the next one."""

    def __init__(self, cluster: ChaosCluster, driver: RestartingDriver, seed: int):
        self.cluster, self.driver, self.rng = cluster, driver, random.Random(seed)

    def fault_kinds(self) -> dict[str, Callable[[], None]]:
        return {
            "worker killed": lambda: self.signal(self.random_node(), WORKER, signal.SIGKILL),
            "worker frozen": lambda: self.freeze(self.random_node(), WORKER, 10),
            "node killed": self.kill_node,
            "node frozen": lambda: self.freeze(self.random_node(), RAYLET, 10),
            "driver killed": lambda: self.driver.process.kill(),
            "driver frozen": self.freeze_driver,
            "head killed": self.kill_head,
            "store killed": self.kill_store,
            "store frozen": lambda: self.freeze(self.cluster.store, WEED, 20),
            "store slow down": lambda: self.store_outage(Fault("answer", None, 0.5)),
            "store resets": lambda: self.store_outage(Fault("reset", None, 0.3, after_bytes=2000)),
            "store refuses": lambda: self.store_outage(Fault("refuse", seconds=15)),
        }

    def random_node(self) -> Namespace:
        return self.rng.choice(self.cluster.nodes)

    def signal(self, host: Namespace, name: str, number: signal.Signals) -> None:
        for pid in pids(host, name):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def freeze(self, host: Namespace, name: str, max_seconds: float) -> None:
        self.signal(host, name, signal.SIGSTOP)
        time.sleep(self.rng.uniform(1, max_seconds))
        self.signal(host, name, signal.SIGCONT)

    def kill_node(self) -> None:
        node = self.random_node()
        self.signal(node, RAYLET, signal.SIGKILL)
        time.sleep(self.rng.uniform(0, 10))
        self.cluster.stop(node.name)
        self.cluster.start_node(node)

    def freeze_driver(self) -> None:
        self.driver.process.send_signal(signal.SIGSTOP)
        time.sleep(self.rng.uniform(1, 20))
        self.driver.process.send_signal(signal.SIGCONT)

    def kill_head(self) -> None:
        self.signal(self.cluster.head, GCS, signal.SIGKILL)
        for name in (*(node.name for node in self.cluster.nodes), "head"):
            self.cluster.stop(name)
        self.cluster.start_cluster()
        self.driver.process.kill()  # it has the old head's address

    def kill_store(self) -> None:
        self.signal(self.cluster.store, WEED, signal.SIGKILL)
        time.sleep(self.rng.uniform(0, 10))
        self.cluster.stop("store")
        self.cluster.start_store()
        with self.cluster.store.enter():
            self.cluster.faults.set_upstream(self.cluster.server.endpoint)

    def store_outage(self, fault: Fault) -> None:
        with self.cluster.store.enter():
            self.cluster.faults.inject(fault)
            time.sleep(self.rng.uniform(5, 20))
            self.cluster.faults.clear()


def pids(host: Namespace, name: str) -> list[int]:
    """The ids of the processes on a host whose command has this name."""
    namespace_inode = Path("/run/netns", host.name).stat().st_ino
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if (process / "ns" / "net").stat().st_ino == namespace_inode and name in command.split(
                " -"
            )[0]:
                found.append(int(process.name))
    return found


def train_with_faults(
    cluster: ChaosCluster, run: str, epochs: int, faults: int, seed: int
) -> dict[str, list[float]]:
    """Trains with this number of faults, of all kinds in random order.

    Returns:
        The seconds from each fault to the next step, by kind of fault.

    Raises:
        SystemExit: no step for `STEP_TIMEOUT_S`, or the run ended before the last fault.
    """
    driver = RestartingDriver(cluster, run, f"training.epochs={epochs}")
    injector = FaultInjector(cluster, driver, seed)
    kinds = injector.fault_kinds()
    order = [kind for _ in range(faults) for kind in injector.rng.sample(list(kinds), len(kinds))]
    recovery_seconds: dict[str, list[float]] = defaultdict(list)
    reached = 0
    for number, kind in enumerate(order[:faults], 1):
        reached = _wait_for_progress(cluster, run, reached)
        time.sleep(injector.rng.uniform(0, 3))
        if driver.done.is_set():
            raise SystemExit(f"the run ended before fault {number}; use more --epochs")
        began = time.monotonic()
        kinds[kind]()
        reached = _wait_for_progress(cluster, run, cluster.samples_seen(run))
        recovery_seconds[kind].append(time.monotonic() - began)
        print(
            f"{number:3}  {kind:16} {recovery_seconds[kind][-1]:6.1f} s to the next step",
            flush=True,
        )
    driver.done.wait()
    print(f"starts of the command: {driver.starts}")
    return recovery_seconds


def _wait_for_progress(cluster: ChaosCluster, run: str, reached: int) -> int:
    """Waits until the run has a later checkpoint or has ended; returns its images."""
    last = cluster.total_images
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while (now := cluster.samples_seen(run)) <= reached and now < last:
        if time.monotonic() > deadline:
            raise SystemExit(f"{run}: no step for {STEP_TIMEOUT_S} s")
        time.sleep(0.5)
    return now


@contextmanager
def chaos_cluster(folder: Path) -> Iterator[ChaosCluster]:
    """Starts a ChaosCluster, with records of synthetic images in storage."""
    folder.mkdir(parents=True, exist_ok=True)
    with namespaces(["head", "one", "two", "store"]) as hosts:
        cluster = ChaosCluster(hosts, folder)
        try:
            cluster.start()
            counts = ("--train", "24", "--validation", "4", "--test", "0", "--short-side", "64")
            cluster.segan("synth", f"s3://{BUCKET}/archive", *counts)
            cluster.segan("ingest", f"s3://{BUCKET}/archive", RECORDS, "--local", "--workers", "1")
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


def main() -> int:
    """Runs both trainings; returns 0 if they are equal."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    with chaos_cluster(arguments.folder) as cluster:
        undisturbed, disturbed = f"s3://{BUCKET}/calm", f"s3://{BUCKET}/rough"
        began = time.monotonic()
        cluster.segan("train", undisturbed, *TRAIN.split(), f"training.epochs={arguments.epochs}")
        print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
        cluster.total_images = cluster.samples_seen(undisturbed)
        recovery_seconds = train_with_faults(
            cluster, disturbed, arguments.epochs, arguments.faults, arguments.seed
        )
        for kind, seconds in sorted(recovery_seconds.items()):
            print(f"{kind:16} median {statistics.median(seconds):6.1f} s of {len(seconds)}")
        same = cluster.outcome(undisturbed) == cluster.outcome(disturbed)
        print("the same to the last bit" if same else "NOT THE SAME")
        return 0 if same else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StartError as error:
        sys.exit(str(error))
