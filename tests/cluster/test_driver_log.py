"""driver.log of a training on Ray."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import ray

from ray_jobs.cluster.queue import Claim
from ray_jobs.training.coordinator import monitor_run, queued_coordinator
from ray_jobs.training.worker import relay_warnings
from segan import storage
from segan.runs.driver_log import keep_driver_log, read_log
from segan.utils.signals import StopRequest

pytestmark = pytest.mark.cluster


@ray.remote(num_cpus=0)
def warn_as_rank_zero(coordinator: Any) -> None:
    with relay_warnings(coordinator):
        logging.getLogger("segan.storage").warning("slow store")
        logging.getLogger("segan.storage").info("not a warning")
    # An actor runs one caller's calls in order: the message has arrived.
    ray.get(coordinator.get_claim.remote())


def test_rank_zeros_warnings_are_in_the_drivers_log(bucket: str) -> None:
    storage.write_json(f"{bucket}/run.json", {})
    with (
        queued_coordinator(Claim("the run", 0.0, 0.0)) as (coordinator, _),
        keep_driver_log(bucket, "segan train"),
        monitor_run(coordinator, lambda _: None, StopRequest(), step_timeout_s=0.0),
    ):
        ray.get(warn_as_rank_zero.remote(coordinator))
    found = [(line.level, line.message) for line in read_log(bucket)]
    assert found[1:] == [("WARNING", "rank 0: slow store"), ("INFO", "segan train: done")]
