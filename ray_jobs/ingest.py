"""An archive to records as a Ray Data job: one task a shard.

ray job submit --working-dir . -- python -m ray_jobs.ingest s3://bucket/isic2017 s3://bucket/records
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

import ray

from segan.data.ingest import ShardTask, write_task


def write_shards(
    tasks: list[ShardTask], out: str, size: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """What `segan.data.ingest.write_task` gives for each task, as the cluster finishes them.

    Args:
        size: (width, height) in pixels of the frames.
    """
    write = functools.partial(_write, tasks=ray.put(tasks), out=out, size=size)
    # A block a task: shards are what the cluster's CPUs share out among them.
    numbers = ray.data.range(len(tasks), override_num_blocks=len(tasks))
    for row in numbers.map(write).iter_rows():
        yield row["result"]


def _write(row: dict[str, Any], tasks: Any, out: str, size: tuple[int, int]) -> dict[str, Any]:
    return {"result": write_task(ray.get(tasks)[row["id"]], out, size)}


if __name__ == "__main__":
    from segan.cli import main

    sys.exit(main(["ingest", *sys.argv[1:]]))
