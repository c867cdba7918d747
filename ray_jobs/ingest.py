"""An archive to records on the cluster: a task a shard.

ray job submit --working-dir . -- python -m ray_jobs.ingest s3://bucket/isic2017 s3://bucket/records
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import ray
from ray.exceptions import RayTaskError

from ray_jobs.cluster import users_part
from segan.data.shards import ShardDone, ShardTask, write_task

WAITING = 2  # tasks handed out for each CPU: enough that none is idle, few enough to be stopped


def on_cluster(tasks: Sequence[ShardTask]) -> Iterator[ShardDone]:
    """What `write_task` makes of each task, as the cluster finishes them."""
    write = ray.remote(write_task)
    most = WAITING * max(1, int(ray.cluster_resources().get("CPU", 1)))
    left, running = list(tasks), list[ray.ObjectRef]()
    try:
        while left or running:
            while left and len(running) < most:
                running.append(write.remote(left.pop(0)))
            ready, running = ray.wait(running)
            yield ray.get(ready[0])
    except RayTaskError as error:
        raise users_part(error) from error
    finally:
        for one in running:
            ray.cancel(one)


if __name__ == "__main__":
    from segan.cli import main

    sys.exit(main(["ingest", *sys.argv[1:]]))
