"""Elastic training after a node loss: how soon a run continues, and when it gives up."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import UserCallback

from ray_jobs.cluster.capacity import POLL_INTERVAL_S, ClusterCapacity
from ray_jobs.cluster.ray_internals import AUTOSCALING_COORDINATOR
from segan.config import ClusterConfig

RECOMPUTE_TIMEOUT_S = 5.0
# How long a run of fixed size, with max_failures=2, waits for its workers to be placed.
DEFAULT_NODE_TIMEOUT_S = 180.0


class NodeLossCallback(UserCallback):
    """Runs in Ray Train's controller after workers have failed.

    Refreshes the list of nodes, which Ray does every 20 s only and would place workers on a lost
    node until then. If not even the minimum number of workers can be placed, Ray Train waits
    forever and cannot be aborted: the controller exits if the nodes have not come back after
    `cluster.resource_timeout_s`, or after `DEFAULT_NODE_TIMEOUT_S` where that is 0.
    """

    def __init__(self, config: ClusterConfig):
        self.config = config

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        coordinator = AUTOSCALING_COORDINATOR.load()()
        recomputed = coordinator.get_reserved_resources.remote("", recompute=True)
        ray.wait([recomputed], timeout=RECOMPUTE_TIMEOUT_S)
        threading.Thread(target=self._exit_if_nodes_stay_lost, daemon=True).start()

    def _exit_if_nodes_stay_lost(self) -> None:
        timeout = self.config.resource_timeout_s or DEFAULT_NODE_TIMEOUT_S
        deadline = time.monotonic() + timeout
        while elastic_shortfall(self.config):
            if time.monotonic() > deadline:
                os._exit(1)  # the driver notices, and raises with the reason
            time.sleep(POLL_INTERVAL_S)


def elastic_shortfall(config: ClusterConfig) -> str:
    """Why an elastic run cannot place its minimum of workers, with the numbers; else empty."""
    with contextlib.suppress(RayError):  # the head node is unreachable
        return ClusterCapacity(config, 0.0).shortfall() if config.elastic else ""
    return ""
