"""Whether a run fits the cluster, and how many of its size do."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping

import ray
from ray.autoscaler.sdk import request_resources

from segan.config import ClusterConfig
from segan.errors import UsageError

logger = logging.getLogger(__name__)

CPUS_FOR_DATA = 1  # Ray Data's read tasks need one that no worker holds
TRIAL_ACTOR_CPUS = 0.01  # of a trial's own actor, beside those of its workers
POLL_INTERVAL_S = 1.0
TOLERANCE = 1e-6  # three workers of 0.1 CPU do fit 0.3


def max_concurrent_runs(config: ClusterConfig, overhead_cpus: float = 0.0) -> int:
    """How many runs of this size the cluster holds together, a CPU kept for reading data.

    Where not one fits, waits `cluster.resource_timeout_s` for nodes, which an autoscaler is
    asked for.

    Args:
        own_cpus: that each run takes beside those of its workers.

    Raises:
        UsageError: not even one, with the numbers.
    """
    capacity = ClusterCapacity(config, overhead_cpus)
    if capacity.shortfall() and config.resource_timeout_s:
        logger.info(
            f"{capacity.shortfall()}; waiting up to {config.resource_timeout_s:g} s for nodes"
        )
        capacity = _wait_for_nodes(capacity)
    if shortfall := capacity.shortfall() or capacity.node_without_data_cpu():
        raise UsageError(f"{shortfall}; use fewer cluster.workers, or less for each")
    return capacity.max_runs()


def num_worker_nodes() -> int:
    """Nodes of the cluster that take work: a head kept free has no CPU to give."""
    return sum(1 for node in _node_resources() if node.get("CPU", 0) > 0)


class ClusterCapacity:
    """The cluster's nodes as they are at one moment, beside what a run takes of them."""

    def __init__(self, config: ClusterConfig, overhead_cpus: float):
        self.config, self.overhead_cpus, self.nodes = config, overhead_cpus, _node_resources()
        resources = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
        self.resources_per_worker = {kind: amount for kind, amount in resources.items() if amount}

    def max_runs(self) -> int:
        """At full size; where that is none, one that can do with fewer workers."""
        return self._max_runs(self.config.workers) or min(
            1, self._max_runs(self.config.required_workers)
        )

    def _max_runs(self, workers: int) -> int:
        cpus = workers * self.resources_per_worker["CPU"] + self.overhead_cpus
        by_cpu = (self._total("CPU") - CPUS_FOR_DATA) / cpus
        return int(min(by_cpu, self._worker_slots() / workers) + TOLERANCE)

    def shortfall(self) -> str:
        """What keeps a single run from being placed, with the numbers; or nothing."""
        if self.max_runs() >= 1:
            return ""
        workers = self.config.required_workers
        for kind, each in self.resources_per_worker.items():
            reserved = CPUS_FOR_DATA + self.overhead_cpus if kind == "CPU" else 0
            if (required := workers * each + reserved) > self._total(kind):
                beside = f" and {reserved:g} for reading data" if reserved else ""
                return (
                    f"cluster: {workers} workers of {each:g} {kind}{beside} need "
                    f"{required:g} {kind}, "
                    f"the cluster has {self._total(kind):g}"
                )
        size = " and ".join(f"{each:g} {kind}" for kind, each in self.resources_per_worker.items())
        return (
            f"cluster: {workers} workers of {size}, each whole on one node, and the nodes have "
            f"places for {self._worker_slots()}"
        )

    def node_without_data_cpu(self) -> str:
        """Names a node that workers alone could fill: after a fault, it would wait for data."""
        for node in self.nodes if self.config.elastic else []:
            workers = min(self._worker_slots_on(node), self.config.workers)
            if (
                workers
                and node.get("CPU", 0) - workers * self.resources_per_worker["CPU"] < CPUS_FOR_DATA
            ):
                return (
                    f"cluster.min_workers: {workers} workers of "
                    f"{self.resources_per_worker['CPU']:g} CPU fill a "
                    f"node of {node['CPU']:g}; where no other is left, reading data needs "
                    f"{CPUS_FOR_DATA} of them"
                )
        return ""

    def _total(self, kind: str) -> float:
        return sum(node.get(kind, 0) for node in self.nodes)

    def _worker_slots(self) -> int:
        """Workers that the nodes hold: all are alike, so each node's number is by itself."""
        return sum(map(self._worker_slots_on, self.nodes))

    def _worker_slots_on(self, node: Mapping[str, float]) -> int:
        return int(
            min(node.get(kind, 0) / each for kind, each in self.resources_per_worker.items())
            + TOLERANCE
        )


def _wait_for_nodes(capacity: ClusterCapacity) -> ClusterCapacity:
    config, overhead_cpus = capacity.config, capacity.overhead_cpus
    deadline = time.monotonic() + config.resource_timeout_s
    with _autoscaler_request(
        [capacity.resources_per_worker] * config.workers + [{"CPU": CPUS_FOR_DATA + overhead_cpus}]
    ):
        while capacity.shortfall() and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
            capacity = ClusterCapacity(config, overhead_cpus)
    return capacity


@contextlib.contextmanager
def _autoscaler_request(bundles: list[dict[str, float]]) -> Iterator[None]:
    """An autoscaler, if there is one, brings nodes for these while the block runs."""
    request_resources(bundles=bundles)
    try:
        yield
    finally:
        request_resources(bundles=[])


def _node_resources() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
