"""Whether a run fits the cluster, and how many runs of its size fit."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import ray
from ray.autoscaler.sdk import request_resources

from segan.config import ClusterConfig
from segan.errors import UsageError
from segan.utils.text import count_noun

logger = logging.getLogger(__name__)

CPUS_FOR_DATA = 1  # kept free of workers, for Ray Data's read tasks
READ_TASK_CPUS = 0.9  # less than that, so that a read task fits beside the actors of a few trials
TRIAL_ACTOR_CPUS = 0.01  # of a trial's own actor, in addition to its workers
POLL_INTERVAL_S = 1.0
TOLERANCE = 1e-6  # of floating-point sums: 3 workers of 0.1 CPUs fit 0.3 CPUs


def max_concurrent_runs(config: ClusterConfig, overhead_cpus: float = 0.0) -> int:
    """The number of runs of this size that fit the cluster at once, with a CPU left to read data.

    If not a single one fits, asks the autoscaler for nodes and waits `cluster.resource_timeout_s`.

    Args:
        config: with a resolved device.
        overhead_cpus: CPUs that each run needs in addition to its workers.

    Raises:
        UsageError: not a single run fits; the message has the numbers.
    """
    capacity = ClusterCapacity(config, overhead_cpus)
    if (shortfall := capacity.shortfall()) and config.resource_timeout_s:
        logger.info(f"{shortfall}; waiting up to {config.resource_timeout_s:g} s for nodes")
        capacity = _wait_for_nodes(capacity)
    if shortfall := capacity.shortfall() or capacity.node_without_data_cpu():
        raise UsageError(f"{shortfall}; use fewer cluster.workers or less resources per worker")
    return capacity.max_runs()


def resolve_cluster_device(config: ClusterConfig) -> ClusterConfig:
    """Returns the section with the cluster's device instead of `auto`."""
    return config.resolve_device(cluster_has_gpu())


def cluster_has_gpu() -> bool:
    """Whether a node of the cluster has a GPU, in use or not."""
    return any(node.get("GPU", 0) > 0 for node in _node_resources())


def num_worker_nodes() -> int:
    """The number of nodes with CPUs for tasks; a head node without any does not count."""
    return sum(1 for node in _node_resources() if node.get("CPU", 0) > 0)


def total_resources() -> dict[str, float]:
    """The resources of all nodes together, in use or not."""
    kinds = ("CPU", "GPU")
    nodes = _node_resources()
    return {kind: sum(node.get(kind, 0) for node in nodes) for kind in kinds}


class ClusterCapacity:
    """The resources of the cluster's nodes at one moment, against the needs of a run."""

    def __init__(self, config: ClusterConfig, overhead_cpus: float):
        self.config, self.overhead_cpus, self.nodes = config, overhead_cpus, _node_resources()
        resources = {"CPU": config.cpus_per_worker, "GPU": config.reserved_gpus}
        self.resources_per_worker = {kind: amount for kind, amount in resources.items() if amount}

    def max_runs(self) -> int:
        """Runs with `cluster.workers` workers; if none fits, 1 if an elastic run can start."""
        return self._max_runs(self.config.workers) or min(
            1, self._max_runs(self.config.required_workers)
        )

    def _max_runs(self, workers: int) -> int:
        cpus = workers * self.resources_per_worker["CPU"] + self.overhead_cpus
        by_cpu = (self._total("CPU") - CPUS_FOR_DATA) / cpus
        return int(min(by_cpu, self._worker_slots() / workers) + TOLERANCE)

    def shortfall(self) -> str:
        """Why not a single run fits, with the numbers; empty if one fits."""
        if self.max_runs() >= 1:
            return ""
        workers = count_noun(self.config.required_workers, "worker")
        for kind, amount in self.resources_per_worker.items():
            reserved = CPUS_FOR_DATA + self.overhead_cpus if kind == "CPU" else 0
            required = self.config.required_workers * amount + reserved
            if required > self._total(kind):
                data = f" plus {count_noun(reserved, kind)} for reading data" if reserved else ""
                return (
                    f"cluster: {workers} of {count_noun(amount, kind)}{data}: "
                    f"{count_noun(required, kind)} required, {self._total(kind):g} available"
                )
        size = " and ".join(count_noun(n, kind) for kind, n in self.resources_per_worker.items())
        return (
            f"cluster: {workers} of {size}, each on a single node: the nodes have room for "
            f"{self._worker_slots()}"
        )

    def node_without_data_cpu(self) -> str:
        """Why an elastic run could wait for data forever; empty if it cannot.

        If workers fill a node and it is the only one left after a fault, no read task can run.
        """
        cpus = self.resources_per_worker["CPU"]
        for node in self.nodes if self.config.elastic else []:
            workers = min(self._worker_slots_on(node), self.config.workers)
            if workers and node.get("CPU", 0) - workers * cpus < CPUS_FOR_DATA:
                return (
                    f"cluster.min_workers: {count_noun(workers, 'worker')} of "
                    f"{count_noun(cpus, 'CPU')} leave less than "
                    f"{count_noun(CPUS_FOR_DATA, 'CPU')} for reading data on a node of "
                    f"{count_noun(node['CPU'], 'CPU')}, which may be the last one after a fault"
                )
        return ""

    def _total(self, kind: str) -> float:
        return sum(node.get(kind, 0) for node in self.nodes)

    def _worker_slots(self) -> int:
        return sum(map(self._worker_slots_on, self.nodes))

    def _worker_slots_on(self, node: Mapping[str, float]) -> int:
        amounts = self.resources_per_worker.items()
        return int(min(node.get(kind, 0) / amount for kind, amount in amounts) + TOLERANCE)


def _wait_for_nodes(capacity: ClusterCapacity) -> ClusterCapacity:
    config, overhead_cpus = capacity.config, capacity.overhead_cpus
    deadline = time.monotonic() + config.resource_timeout_s
    workers = [capacity.resources_per_worker] * config.workers
    # An autoscaler, if the cluster has one, starts nodes for these.
    request_resources(bundles=[*workers, {"CPU": CPUS_FOR_DATA + overhead_cpus}])
    try:
        while capacity.shortfall() and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
            capacity = ClusterCapacity(config, overhead_cpus)
    finally:
        request_resources(bundles=[])
    return capacity


def _node_resources() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
