"""Ingest on the cluster: a task for each shard, and then for each tile of compared images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from ray_jobs.cluster.connect import unwrap_user_error
from ray_jobs.cluster.queue import report_busy_cluster
from segan.data.ingest import Task, run_task

TASKS_PER_CPU = 2  # submitted at once: enough to keep the CPUs busy, few enough to cancel


def cluster_executor(tasks: Sequence[Task]) -> Iterator[Any]:
    """Runs `run_task` for each task; yields the results in the order of their completion.

    On a busy cluster, the tasks wait for free CPUs.

    Raises:
        SeganError: raised by a task; the unfinished tasks are cancelled.
    """
    report_busy_cluster("CPU")
    run = ray.remote(run_task)
    max_running = TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending, running = list(tasks), list[ray.ObjectRef]()
    try:
        while pending or running:
            while pending and len(running) < max_running:
                running.append(run.remote(pending.pop(0)))
            ready, running = ray.wait(running)
            yield ray.get(ready[0])
    except RayTaskError as error:
        raise unwrap_user_error(error) from error
    finally:
        for task in running:
            ray.cancel(task)
