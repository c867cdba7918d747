"""The records' sequence as one Ray Data execution through all epochs of a run.

    plan --read tasks--> blocks of a rank's batches --split--> rank 0, rank 1, ... --> batches

Ray Data has no notion of the order that a training wants, so the order is in the source: each
read task covers a stretch of the sequence, a few steps at a time, and yields a block for each rank
with its batches of these steps. With `preserve_order`, an equal split then deals the blocks out in
turn, and each rank gets its own part of every step. Ray Data's work is by the block, whatever its
size, so a block holds several batches where they are small; all have the same size, and what that
brings from past the run's end is left out.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataIterator, Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.train import DataConfig

from segan.data.records.format import Manifest, Shard, read_shard
from segan.data.stream.batches import Batch, StreamSpec, to_batch

MAX_READ_TASKS = 4000  # every read task is an object in the driver's store from the start
OBJECT_STORE_FRACTION = 0.3  # of the cluster's object memory that records may stay in
ROW_METADATA_BYTES = 64  # of id, epoch and position
MAX_BLOCK_BYTES = 16e6  # that a block grows to
MAX_STEP_GROUP_BYTES = (
    64e6  # of all ranks' blocks of the same steps, which a read task holds together
)
SCHEDULING_LOOP_SLEEP_S = 0.01


class SamplerDatasource(Datasource):
    """Read tasks over stretches of the sequence, each about a shard long."""

    def __init__(self, spec: StreamSpec):
        super().__init__()
        self._spec = spec

    def estimate_inmemory_data_size(self) -> int:
        return (self._spec.stop - self._spec.start) * bytes_per_row(self._spec.sampler.manifest)

    def row_ranges(self) -> list[tuple[int, int]]:
        """(first, last) rows of each read task, the last past the plan's where blocks need it."""
        spec = self._spec
        rows_per_block_group = spec.global_batch_size * steps_per_block(spec)
        target_rows = max(_rows_per_shard(spec), (spec.stop - spec.start) / MAX_READ_TASKS)
        size = max(1, round(target_rows / rows_per_block_group)) * rows_per_block_group
        stop = spec.start - (spec.start - spec.stop) // rows_per_block_group * rows_per_block_group
        return [(at, min(at + size, stop)) for at in range(spec.start, stop, size)]

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        # By reference: the plan holds the manifest, and there are thousands of tasks.
        spec_ref = ray.put(self._spec)
        shard_refs = _cache_shards_in_object_store(self._spec)
        size = bytes_per_row(self._spec.sampler.manifest)
        return [
            ReadTask(
                functools.partial(_read_blocks, spec_ref, shard_refs, first, last),
                BlockMetadata(last - first, (last - first) * size, None, None),
            )
            for first, last in self.row_ranges()
        ]


class StreamDataConfig(DataConfig):
    """Deals a plan out to the workers of a Ray Train run.

    Ray Train asks at every start of the worker group, so a group that is started again after a
    fault gets a stream that begins where the latest checkpoint stands.
    """

    def configure(
        self, datasets: dict[str, Any], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, DataIterator]]:
        ((name, plan),) = datasets.items()
        splits = open_stream(plan.with_world_size(world_size)).streaming_split(world_size, equal=True)
        return [{name: split} for split in splits]


class ThrottleSchedulingLoop(ExecutionCallback):
    """Lets the execution's loop rest between its steps.

    While its output waits to be taken, which is nearly always with a training behind it, the loop
    turns without pause and would take half a core from the training on the same machine.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(SCHEDULING_LOOP_SLEEP_S)


def open_stream(spec: StreamSpec) -> Dataset:
    """The plan as a dataset, nothing read yet; every block of it is one rank's."""
    source = SamplerDatasource(spec)
    stream = ray.data.read_datasource(
        source,
        override_num_blocks=len(source.row_ranges()),
        # A task that waits for a shard gives its CPU back, and Ray would start ever more of them.
        concurrency=max(2, spec.world_size),
    )
    stream.context.execution_options.preserve_order = True
    stream.context.custom_execution_callback_classes.append(ThrottleSchedulingLoop)
    # Ray Data gathers small blocks and cuts large ones. A block that is above this and below
    # one and a half times it passes as it is.
    block = steps_per_block(spec) * spec.batch_size * bytes_per_row(spec.sampler.manifest)
    stream.context.target_max_block_size = int(block * 0.8)
    return stream


def iter_batches(stream: DataIterator, spec: StreamSpec) -> Iterator[Batch]:
    """A rank's batches, as Ray Data brings its blocks; views of the blocks' memory."""
    blocks = stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    for table in blocks:
        for at in range(0, table.num_rows, spec.batch_size):
            batch = to_batch(table.slice(at, spec.batch_size), spec.sampler.manifest)
            if batch.position < spec.stop:
                yield batch


def steps_per_block(spec: StreamSpec) -> int:
    """Steps whose batches share a block: as many as fit, and at most a shard's."""
    batch = spec.batch_size * bytes_per_row(spec.sampler.manifest)
    fit = min(MAX_BLOCK_BYTES / batch, MAX_STEP_GROUP_BYTES / (batch * spec.world_size))
    return max(1, min(int(fit), round(_rows_per_shard(spec) / spec.global_batch_size)))


def bytes_per_row(manifest: Manifest) -> int:
    return manifest.height * manifest.width * (3 + manifest.classes) + ROW_METADATA_BYTES


def _read_blocks(
    spec_ref: Any, shard_refs: dict[str, Any], start: int, stop: int
) -> Iterator[pa.Table]:
    spec: StreamSpec = ray.get(spec_ref)

    def load(shard: Shard) -> pa.Table:
        if shard.name in shard_refs:
            return ray.get(shard_refs[shard.name])
        return read_shard(spec.records, shard)

    steps, size = steps_per_block(spec), spec.global_batch_size
    for table in spec.sampler.blocks(start, stop, steps * size, load):
        for rank in range(spec.world_size):
            rank_rows = range(rank * spec.batch_size, steps * size, size)
            yield pa.concat_tables(
                [table.slice(at, spec.batch_size) for at in rank_rows]
            ).combine_chunks()


def _rows_per_shard(spec: StreamSpec) -> float:
    return spec.sampler.num_rows / len(spec.sampler.manifest.shards(spec.sampler.split))


def _cache_shards_in_object_store(spec: StreamSpec) -> dict[str, Any]:
    """References to the shards' tables in Ray's object store, where they fit; else none.

    Each shard is then read from storage once and copied between nodes once, whatever the number
    of epochs.
    """
    manifest = spec.sampler.manifest
    records_bytes = spec.sampler.num_rows * bytes_per_row(manifest)
    object_store_bytes = ray.cluster_resources().get("object_store_memory", 0)
    if records_bytes > OBJECT_STORE_FRACTION * object_store_bytes:
        return {}
    read = ray.remote(read_shard).options(name="read_shard")
    return {
        shard.name: read.remote(spec.records, shard)
        for shard in manifest.shards(spec.sampler.split)
    }
