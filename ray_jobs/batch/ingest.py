"""An archive to records on the cluster: a task a shard.

ray job submit --working-dir . -- python -m ray_jobs.ingest s3://bucket/isic2017 s3://bucket/records
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ray
from ray.exceptions import RayTaskError

from ray_jobs.cluster.connect import unwrap_user_error
from segan.data.records.shards import ShardResult, ShardTask, write_task

TASKS_PER_CPU = (
    2  # tasks handed out for each CPU: enough that none is idle, few enough to be stopped
)


def cluster_executor(tasks: Sequence[ShardTask]) -> Iterator[ShardResult]:
    """What `write_task` makes of each task, as the cluster finishes them."""
    write = ray.remote(write_task)
    max_running = TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending, running = list(tasks), list[ray.ObjectRef]()
    try:
        while pending or running:
            while pending and len(running) < max_running:
                running.append(write.remote(pending.pop(0)))
            ready, running = ray.wait(running)
            yield ray.get(ready[0])
    except RayTaskError as error:
        raise unwrap_user_error(error) from error
    finally:
        for one in running:
            ray.cancel(one)
