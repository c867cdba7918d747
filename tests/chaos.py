"""A training that nothing goes well for, beside the same one undisturbed.

    python -m tests.chaos --faults 30 --seed 0 --folder /tmp/chaos

A head that takes no work, two nodes with a worker each, and a store behind a proxy, in four network
namespaces (Linux, root, iproute2). At seeded random moments a process is killed or frozen, or the
store has a bad minute; whoever a cluster's operator would start again is started again. In the end
the disturbed run must have the weights, the moments and the metrics of the undisturbed one, bit by
bit. Prints a line for each fault, with the seconds till the next step, and exits with 0 if so.
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
from tests.clock import without_times
from tests.faults import Fault, Faults, faulty

BUCKET = "chaos"
RECORDS = f"s3://{BUCKET}/records"
TRAIN = (
    f"data.records={RECORDS} network.width=2 augment.crop=64 training.batch_size=4 "
    "training.checkpoint_every=2 training.log_every=1 cluster.threads_per_worker=1 "
    "cluster.workers=2 cluster.cpus_per_worker=2 cluster.max_failures=3"
)
# One process for all that is asked: another one each time would take half a core to start.
ANSWER = """
import json, sys
from segan.errors import SeganError
from segan.runs import Run

for line in sys.stdin:
    what, uri = line.split()
    run = Run(uri)
    try:
        latest = run.latest()
        if what == "images":
            answer = latest.samples if latest else 0
        else:
            answer = [dict(latest.files), run.metrics()]
    except SeganError:
        answer = None
    print(json.dumps(answer), flush=True)
"""
MOST_SECONDS = 400  # to the next step after a fault: after that it hangs
WORKER, RAYLET, GCS, WEED = "ray::RayTrainWorker", "raylet/raylet", "gcs_server", "weed"


class World:
    """The hosts and what runs on them; everything is started again where it was."""

    def __init__(self, hosts: list[Namespace], folder: Path):
        self.head, *self.nodes, self.store = hosts
        self.folder = folder
        self.running: dict[str, ExitStack] = defaultdict(ExitStack)
        self.server: S3Server
        self.cluster: RayCluster
        self.faults: Faults
        self.asked: subprocess.Popen[str]
        self.keys: dict[str, str] = {}
        self.last_image = 0  # of a whole run

    def start(self) -> None:
        self.start_store()
        with self.store.inside():
            proxy = faulty(self.server.endpoint, self.folder, host=self.store.ip)
            self.faults = self.running["proxy"].enter_context(proxy)
            self.server.create_bucket(BUCKET)
        self.keys = self.server.environment | {
            "AWS_ENDPOINT_URL": self.faults.endpoint,
            "GLOO_SOCKET_IFNAME": INTERFACE,
        }
        self.start_cluster()
        with self.head.inside():
            self.asked = subprocess.Popen(
                [sys.executable, "-c", ANSWER],
                env=self.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        self.running["asked"].callback(self.asked.communicate)  # which ends it

    def start_store(self) -> None:
        with self.store.inside(), _with_the_same_keys(self.keys):
            place = s3_server(self.folder / "s3", self.store.ip)
            self.server = self.running["store"].enter_context(place)

    def start_cluster(self) -> None:
        with self.head.inside():
            cluster = ray_cluster(self.folder / "ray", 0, self.keys, ip=self.head.ip)
            self.cluster = self.running["head"].enter_context(cluster)
        for node in self.nodes:
            self.start_node(node)

    def start_node(self, node: Namespace) -> None:
        with node.inside():
            place = ray_node(self.cluster, self.folder / node.name, 3, self.keys, node.ip)
            self.running[node.name].enter_context(place)

    def end(self, name: str) -> None:
        """What is left of it, if anything is."""
        self.running[name].close()

    def end_all(self) -> None:
        for name in ("asked", *(node.name for node in self.nodes), "head", "proxy", "store"):
            self.end(name)

    def environment(self) -> dict[str, str]:
        return os.environ | self.keys | self.cluster.environment

    def segan(self, *words: str) -> None:
        """A command that has to succeed, from the head."""
        with self.head.inside():
            done = subprocess.run(
                [sys.executable, "-m", "segan.cli", *words],
                env=self.environment(),
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr

    def images(self, run: str) -> int:
        """That the run has taken up to its latest checkpoint; 0 where nobody can say."""
        return int(self._ask("images", run) or 0)

    def outcome(self, run: str) -> tuple[Any, Any]:
        """What must be the same: the last checkpoint's checksums, and the metrics but for times."""
        files, lines = self._ask("outcome", run)
        return files, without_times(lines)

    def _ask(self, what: str, run: str) -> Any:
        assert self.asked.stdin is not None
        assert self.asked.stdout is not None
        self.asked.stdin.write(f"{what} {run}\n")
        self.asked.stdin.flush()
        return json.loads(self.asked.stdout.readline())


class Driver:
    """Someone who gives the same command again until it is done."""

    def __init__(self, world: World, run: str, *overrides: str):
        self.world, self.log = world, (world.folder / "driver.log").open("a")
        self.command = [sys.executable, "-m", "segan.cli", "train", run, *TRAIN.split(), *overrides]
        self.starts = 0
        self.done = threading.Event()
        self._start()
        self._watcher = threading.Thread(target=self._insist, daemon=True)
        self._watcher.start()

    def _start(self) -> None:
        self.starts += 1
        with self.world.head.inside():
            self.process = subprocess.Popen(
                self.command, env=self.world.environment(), stdout=self.log, stderr=self.log
            )

    def _insist(self) -> None:
        while self.process.wait() != 0:
            time.sleep(0.5)
            self._start()
        self.done.set()


class Chaos:
    """The faults; what each of them broke is mended before the next."""

    def __init__(self, world: World, driver: Driver, seed: int):
        self.world, self.driver, self.chance = world, driver, random.Random(seed)

    def kinds(self) -> dict[str, Callable[[], None]]:
        return {
            "worker killed": lambda: self.signal(self.node(), WORKER, signal.SIGKILL),
            "worker frozen": lambda: self.freeze(self.node(), WORKER, 10),
            "node killed": self.kill_node,
            "node frozen": lambda: self.freeze(self.node(), RAYLET, 10),
            "driver killed": lambda: self.driver.process.kill(),
            "driver frozen": self.freeze_driver,
            "head killed": self.kill_head,
            "store killed": self.kill_store,
            "store frozen": lambda: self.freeze(self.world.store, WEED, 20),
            "store slow down": lambda: self.bad_minute(Fault("answer", None, 0.5)),
            "store resets": lambda: self.bad_minute(Fault("reset", None, 0.3, after=2000)),
            "store refuses": lambda: self.bad_minute(Fault("refuse", seconds=15)),
        }

    def node(self) -> Namespace:
        return self.chance.choice(self.world.nodes)

    def signal(self, host: Namespace, name: str, number: signal.Signals) -> None:
        for pid in pids(host, name):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def freeze(self, host: Namespace, name: str, most: float) -> None:
        self.signal(host, name, signal.SIGSTOP)
        time.sleep(self.chance.uniform(1, most))
        self.signal(host, name, signal.SIGCONT)

    def kill_node(self) -> None:
        node = self.node()
        self.signal(node, RAYLET, signal.SIGKILL)
        time.sleep(self.chance.uniform(0, 10))
        self.world.end(node.name)
        self.world.start_node(node)

    def freeze_driver(self) -> None:
        self.driver.process.send_signal(signal.SIGSTOP)
        time.sleep(self.chance.uniform(1, 20))
        self.driver.process.send_signal(signal.SIGCONT)

    def kill_head(self) -> None:
        self.signal(self.world.head, GCS, signal.SIGKILL)
        for name in (*(node.name for node in self.world.nodes), "head"):
            self.world.end(name)
        self.world.start_cluster()
        self.driver.process.kill()  # its address is the old head's

    def kill_store(self) -> None:
        self.signal(self.world.store, WEED, signal.SIGKILL)
        time.sleep(self.chance.uniform(0, 10))
        self.world.end("store")
        self.world.start_store()
        with self.world.store.inside():
            self.world.faults.lead_to(self.world.server.endpoint)

    def bad_minute(self, fault: Fault) -> None:
        with self.world.store.inside():
            self.world.faults.order(fault)
            time.sleep(self.chance.uniform(5, 20))
            self.world.faults.heal()


def pids(host: Namespace, name: str) -> list[int]:
    """Processes on a host that were started by this name."""
    there = Path("/run/netns", host.name).stat().st_ino
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if (process / "ns" / "net").stat().st_ino == there and name in command.split(" -")[0]:
                found.append(int(process.name))
    return found


def disturb(world: World, run: str, epochs: int, faults: int, seed: int) -> dict[str, list[float]]:
    """Trains with so many faults, all kinds in turn; returns the seconds to the next step by kind.

    Raises:
        SystemExit: no step came for long, or the run was over before the last fault.
    """
    driver = Driver(world, run, f"training.epochs={epochs}")
    chaos = Chaos(world, driver, seed)
    kinds = chaos.kinds()
    order = [kind for _ in range(faults) for kind in chaos.chance.sample(list(kinds), len(kinds))]
    took: dict[str, list[float]] = defaultdict(list)
    reached = 0
    for number, kind in enumerate(order[:faults], 1):
        reached = _further(world, run, reached)
        time.sleep(chaos.chance.uniform(0, 3))
        if driver.done.is_set():
            raise SystemExit(f"the run was over before fault {number}: more epochs are needed")
        began = time.monotonic()
        kinds[kind]()
        reached = _further(world, run, world.images(run))
        took[kind].append(time.monotonic() - began)
        print(f"{number:3}  {kind:16} {took[kind][-1]:6.1f} s to the next step", flush=True)
    driver.done.wait()
    print(f"the command was given {driver.starts} times")
    return took


def _further(world: World, run: str, reached: int) -> int:
    """Waits till the run is further than it was, or over; returns how far."""
    last = world.last_image
    deadline = time.monotonic() + MOST_SECONDS
    while (now := world.images(run)) <= reached and now < last:
        if time.monotonic() > deadline:
            raise SystemExit(f"{run}: no step for {MOST_SECONDS} s")
        time.sleep(0.5)
    return now


@contextmanager
def a_world(folder: Path) -> Iterator[World]:
    """All of it, with records of drawn images in the store."""
    folder.mkdir(parents=True, exist_ok=True)
    with namespaces(["head", "one", "two", "store"]) as hosts:
        world = World(hosts, folder)
        try:
            world.start()
            counts = ("--train", "24", "--validation", "4", "--test", "0", "--short-side", "64")
            world.segan("synth", f"s3://{BUCKET}/archive", *counts)
            world.segan("ingest", f"s3://{BUCKET}/archive", RECORDS, "--local", "--workers", "1")
            yield world
        finally:
            world.end_all()


@contextmanager
def _with_the_same_keys(keys: dict[str, str]) -> Iterator[None]:
    """A store takes its keys from the environment, and makes some where it finds none."""
    given = {name: value for name, value in keys.items() if "KEY" in name}
    os.environ.update(given)
    try:
        yield
    finally:
        for name in given:
            del os.environ[name]


def main() -> int:
    """Both runs; 0 if they are the same."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    words = parser.parse_args()
    with a_world(words.folder) as world:
        calm, rough = f"s3://{BUCKET}/calm", f"s3://{BUCKET}/rough"
        began = time.monotonic()
        world.segan("train", calm, *TRAIN.split(), f"training.epochs={words.epochs}")
        print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
        world.last_image = world.images(calm)
        took = disturb(world, rough, words.epochs, words.faults, words.seed)
        for kind, seconds in sorted(took.items()):
            print(f"{kind:16} median {statistics.median(seconds):6.1f} s of {len(seconds)}")
        same = world.outcome(calm) == world.outcome(rough)
        print("the same to the last bit" if same else "NOT THE SAME")
        return 0 if same else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StartError as error:
        sys.exit(str(error))
