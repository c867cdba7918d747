"""The training data of all epochs of a run as one Ray Data execution.

    stream spec --read tasks--> blocks of one rank's batches --split--> rank 0, 1, ... --> batches

Ray Data does not order samples as a training needs it, so the order is made by the source: each
read task covers a range of the sampler's rows, a few steps at a time, and yields one block per rank
with its batches of these steps. With `preserve_order`, an equal split hands the blocks to the ranks
in turn, and each rank gets its share of every step. Ray Data's overhead is per block, so a block
holds several batches where these are small. All blocks have the same size; rows past the end of the
run are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.data import DataIterator, Dataset
from ray.train import DataConfig

from ray_jobs.cluster.capacity import READ_TASK_CPUS
from ray_jobs.cluster.ray_internals import EXECUTION_CALLBACK
from ray_jobs.training.datasource import SamplerDatasource, bytes_per_row, steps_per_block
from segan.data.stream.batches import Batch, StreamSpec, to_batch

SCHEDULING_LOOP_SLEEP_S = 0.01


class StreamDataConfig(DataConfig):
    """Gives each worker of a Ray Train run its part of the stream.

    Ray Train calls it at each start of the worker group, so a group that is restarted after a fault
    gets a stream that begins at the latest checkpoint.
    """

    def configure(
        self, datasets: dict[str, StreamSpec], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, DataIterator]]:
        ((name, spec),) = datasets.items()
        stream = open_stream(spec.with_world_size(world_size))
        return [{name: split} for split in stream.streaming_split(world_size, equal=True)]


class ThrottleSchedulingLoop(EXECUTION_CALLBACK.load()):  # type: ignore[misc]
    """Sleeps between iterations of Ray Data's scheduling loop.

    The loop busy-waits while its output is full, as it nearly always is during a training, and
    takes half a core from a training on the same machine.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(SCHEDULING_LOOP_SLEEP_S)


def open_stream(spec: StreamSpec) -> Dataset:
    """The lazy dataset of a stream; each of its blocks belongs to one rank."""
    source = SamplerDatasource(spec)
    stream = ray.data.read_datasource(
        source,
        override_num_blocks=len(source.row_ranges()),
        ray_remote_args={"num_cpus": READ_TASK_CPUS},
        # A task that waits for a shard releases its CPU, and Ray would start more and more tasks.
        concurrency=max(2, spec.world_size),
    )
    stream.context.execution_options.preserve_order = True
    stream.context.custom_execution_callback_classes.append(ThrottleSchedulingLoop)
    # Ray Data merges small blocks and splits large ones. It leaves a block alone whose size is
    # between this value and one and a half times it.
    block = steps_per_block(spec) * spec.batch_size * bytes_per_row(spec.sampler.manifest)
    stream.context.target_max_block_size = int(block * 0.8)
    return stream


def iter_batches(stream: DataIterator, spec: StreamSpec) -> Iterator[Batch]:
    """A rank's batches in order; their arrays are views of Ray Data's blocks."""
    blocks = stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    for table in blocks:
        for at in range(0, table.num_rows, spec.batch_size):
            batch = to_batch(table.slice(at, spec.batch_size), spec.sampler.manifest)
            if batch.position < spec.stop:
                yield batch
