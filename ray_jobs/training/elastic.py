"""An elastic run that loses nodes: how soon it goes on with what is left, and when it ends."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.exceptions import RayError
from ray.train import UserCallback

from ray_jobs.cluster.capacity import POLL_INTERVAL_S, ClusterCapacity
from segan.config import ClusterConfig

RECOMPUTE_TIMEOUT_S = 5.0
DEFAULT_NODE_TIMEOUT_S = (
    180.0  # as long as a run of fixed size, by max_failures=2, asks for its places
)


class NodeLossCallback(UserCallback):
    """What Ray Train's controller does of ours when workers have failed.

    Ray looks every 20 s which nodes are left, and until then wants workers on one that is gone:
    here it looks at once. And where not even the least workers find a place, it waits without end,
    in a loop that lets no abort through: the controller ends itself where nodes do not come back
    for `cluster.resource_timeout_s`, or for `SHORT_SECONDS` where that is 0.
    """

    def __init__(self, config: ClusterConfig):
        self.config = config

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        coordinator = get_or_create_autoscaling_coordinator()
        look = coordinator.get_reserved_resources.remote("", recompute=True)
        ray.wait([look], timeout=RECOMPUTE_TIMEOUT_S)
        threading.Thread(target=self._exit_if_nodes_stay_lost, daemon=True).start()

    def _exit_if_nodes_stay_lost(self) -> None:
        until = time.monotonic() + (self.config.resource_timeout_s or DEFAULT_NODE_TIMEOUT_S)
        while elastic_shortfall(self.config):
            if time.monotonic() > until:
                os._exit(1)  # the driver, which sees it die, says why
            time.sleep(POLL_INTERVAL_S)


def elastic_shortfall(config: ClusterConfig) -> str:
    """What an elastic run lacks for its least workers, with the numbers; or nothing."""
    with contextlib.suppress(RayError):  # the head is away, which is another matter
        return ClusterCapacity(config, 0.0).shortfall() if config.elastic else ""
    return ""
