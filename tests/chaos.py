"""A training with injected faults, compared with the same training without.

    python -m tests.chaos --faults 30 --seed 0 --folder /tmp/chaos

Runs a head without CPUs, two nodes with a worker each, and an S3 server behind a proxy, in four
network namespaces (Linux, root, iproute2). At random moments, by the seed, a process is killed or
frozen, storage fails for some seconds, the same command is started a second time, or the records
are replaced; what an operator would restart is restarted. The disturbed run must have bitwise the
same weights, optimizer states and metrics as the undisturbed one. Prints one line per fault with
the seconds until the next step; exit code 0 if the runs are equal.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from infra.local.namespaces import Namespace
from infra.local.processes import StartError
from tests.chaos_cluster import BUCKET, RECORDS, TRAIN_PAIRS, ChaosCluster, chaos_cluster
from tests.fault_proxy import Fault

TRAIN = (
    f"data.records={RECORDS} network.width=2 augment.crop=64 training.batch_size=4 "
    "training.checkpoint_every_steps=2 training.log_every_steps=1 cluster.threads_per_worker=1 "
    "cluster.workers=2 cluster.cpus_per_worker=2 cluster.max_failures=3"
)
STEP_TIMEOUT_S = 400  # from a fault to the next step; after that the run hangs
WORKER, RAYLET, GCS, WEED = "ray::RayTrainWorker", "raylet/raylet", "gcs_server", "weed"


class RestartingDriver:
    """Runs the same command again until it succeeds.

    Attributes:
        process: the driver; another one after `hand_over`.
    """

    def __init__(self, cluster: ChaosCluster, run: str, *overrides: str):
        self.cluster, self.run = cluster, run
        self.log = (cluster.folder / "driver.log").open("a")
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
        while True:
            process = self.process
            code = process.wait()
            if process is self.process:
                if code == 0:
                    break
                time.sleep(0.5)
                self._start()
        self.done.set()

    def start_second(self) -> None:
        """Starts the command beside the driver, which must refuse the second one."""
        second = self.cluster.run_on_head(self.command)
        if second.returncode != 2 or str(self.process.pid) not in second.stderr:
            raise SystemExit(f"a second driver ended with {second.returncode}:\n{second.stderr}")

    def hand_over(self) -> None:
        """Freezes the driver until a second one has taken the run over, then continues it.

        The second one is refused and started again until the frozen one's lease has expired.
        """
        frozen = self.process
        frozen.send_signal(signal.SIGSTOP)
        self._start()

        def has_taken_over() -> bool:
            if self.process.poll() is not None:
                self._start()
            return self.cluster.holder(self.run) == self.process.pid

        _wait_until(has_taken_over, f"{self.run}: not taken over from a frozen driver")
        frozen.send_signal(signal.SIGCONT)
        if frozen.wait(STEP_TIMEOUT_S) == 0:
            raise SystemExit("the driver that was frozen does not know that it lost its lease")


class FaultInjector:
    """The faults; what a fault breaks is repaired before the next one."""

    def __init__(self, cluster: ChaosCluster, driver: RestartingDriver, seed: int):
        self.cluster, self.driver, self.rng = cluster, driver, random.Random(seed)
        self.train_pairs = TRAIN_PAIRS

    def fault_kinds(self) -> dict[str, Callable[[], None]]:
        return {
            "worker killed": lambda: self.signal(self.random_node(), WORKER, signal.SIGKILL),
            "worker frozen": lambda: self.freeze(self.random_node(), WORKER, 10),
            "node killed": self.kill_node,
            "node frozen": lambda: self.freeze(self.random_node(), RAYLET, 10),
            "driver killed": lambda: self.driver.process.kill(),
            "driver frozen": self.freeze_driver,
            "driver superseded": self.driver.hand_over,
            "second driver": self.driver.start_second,
            "records replaced": self.replace_records,
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

    def replace_records(self) -> None:
        """Then restarts the workers, which must read the records that the run began with."""
        self.train_pairs += 4
        self.cluster.ingest(self.train_pairs)
        for node in self.cluster.nodes:
            self.signal(node, WORKER, signal.SIGKILL)

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
            f"{number:3}  {kind:17} {recovery_seconds[kind][-1]:6.1f} s to the next step",
            flush=True,
        )
    driver.done.wait()
    print(f"starts of the command: {driver.starts}")
    return recovery_seconds


def _wait_for_progress(cluster: ChaosCluster, run: str, reached: int) -> int:
    """Waits until the run has a later checkpoint or has ended; returns its images."""
    now = 0

    def has_progress() -> bool:
        nonlocal now
        now = cluster.samples_seen(run)
        return now > reached or now >= cluster.total_images

    _wait_until(has_progress, f"{run}: no step for {STEP_TIMEOUT_S} s")
    return now


def _wait_until(condition: Callable[[], bool], failure: str) -> None:
    """Raises SystemExit with this message after `STEP_TIMEOUT_S`."""
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(failure)
        time.sleep(0.5)


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
            print(f"{kind:17} median {statistics.median(seconds):6.1f} s of {len(seconds)}")
        same = cluster.outcome(undisturbed) == cluster.outcome(disturbed)
        print("the same to the last bit" if same else "NOT THE SAME")
        return 0 if same else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StartError as error:
        sys.exit(str(error))
