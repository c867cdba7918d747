"""Whether a run fits the cluster, and how many of its size do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

import ray
from ray.autoscaler.sdk import request_resources

from segan.config import ClusterConfig
from segan.errors import UsageError
from segan.terminal import say

CPUS_FOR_DATA = 1  # Ray Data's read tasks need one that no worker holds
TRIAL_CPUS = 0.01  # of a trial's own actor, beside those of its workers
LOOK_SECONDS = 1.0
ROUNDING = 1e-6  # three workers of 0.1 CPU do fit 0.3


def runs_at_once(config: ClusterConfig, own_cpus: float = 0.0) -> int:
    """How many runs of this size the cluster holds together, a CPU kept for reading data.

    Where not one fits, waits `cluster.wait_seconds` for nodes, which an autoscaler is asked for.

    Args:
        own_cpus: that each run takes beside those of its workers.

    Raises:
        UsageError: not even one, with the numbers.
    """
    found = Room(config, own_cpus)
    if found.lacks() and config.wait_seconds:
        say(f"{found.lacks()}; waiting up to {config.wait_seconds:g} s for nodes")
        found = _wait(found)
    if lacking := found.lacks() or found.crowded():
        raise UsageError(f"{lacking}; use fewer cluster.workers, or less for each")
    return found.runs()


def nodes_with_work() -> int:
    """Nodes of the cluster that take work: a head kept free has no CPU to give."""
    return sum(1 for node in _nodes() if node.get("CPU", 0) > 0)


class Room:
    """The cluster's nodes as they are at one moment, beside what a run takes of them."""

    def __init__(self, config: ClusterConfig, own_cpus: float):
        self.config, self.own_cpus, self.nodes = config, own_cpus, _nodes()
        each = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
        self.worker = {kind: amount for kind, amount in each.items() if amount}

    def runs(self) -> int:
        """At full size; where that is none, one that can do with fewer workers."""
        return self._runs(self.config.workers) or min(1, self._runs(self.config.least_workers))

    def _runs(self, workers: int) -> int:
        cpus = workers * self.worker["CPU"] + self.own_cpus
        by_cpu = (self._have("CPU") - CPUS_FOR_DATA) / cpus
        return int(min(by_cpu, self._places() / workers) + ROUNDING)

    def lacks(self) -> str:
        """What keeps a single run from being placed, with the numbers; or nothing."""
        if self.runs() >= 1:
            return ""
        workers = self.config.least_workers
        for kind, each in self.worker.items():
            kept = CPUS_FOR_DATA + self.own_cpus if kind == "CPU" else 0
            if (need := workers * each + kept) > self._have(kind):
                beside = f" and {kept:g} for reading data" if kept else ""
                return (
                    f"cluster: {workers} workers of {each:g} {kind}{beside} need {need:g} {kind}, "
                    f"the cluster has {self._have(kind):g}"
                )
        size = " and ".join(f"{each:g} {kind}" for kind, each in self.worker.items())
        return (
            f"cluster: {workers} workers of {size}, each whole on one node, and the nodes have "
            f"places for {self._places()}"
        )

    def crowded(self) -> str:
        """Names a node that workers alone could fill: after a fault, it would wait for data."""
        for node in self.nodes if self.config.elastic else []:
            workers = min(self._places_on(node), self.config.workers)
            if workers and node.get("CPU", 0) - workers * self.worker["CPU"] < CPUS_FOR_DATA:
                return (
                    f"cluster.min_workers: {workers} workers of {self.worker['CPU']:g} CPU fill a "
                    f"node of {node['CPU']:g}; where no other is left, reading data needs "
                    f"{CPUS_FOR_DATA} of them"
                )
        return ""

    def _have(self, kind: str) -> float:
        return sum(node.get(kind, 0) for node in self.nodes)

    def _places(self) -> int:
        """Workers that the nodes hold: all are alike, so each node's number is by itself."""
        return sum(map(self._places_on, self.nodes))

    def _places_on(self, node: Mapping[str, float]) -> int:
        return int(min(node.get(kind, 0) / each for kind, each in self.worker.items()) + ROUNDING)


def _wait(room: Room) -> Room:
    config, own_cpus = room.config, room.own_cpus
    until = time.monotonic() + config.wait_seconds
    with _asked_for([room.worker] * config.workers + [{"CPU": CPUS_FOR_DATA + own_cpus}]):
        while room.lacks() and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
            room = Room(config, own_cpus)
    return room


@contextlib.contextmanager
def _asked_for(bundles: list[dict[str, float]]) -> Iterator[None]:
    """An autoscaler, if there is one, brings nodes for these while the block runs."""
    request_resources(bundles=bundles)
    try:
        yield
    finally:
        request_resources(bundles=[])


def _nodes() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
