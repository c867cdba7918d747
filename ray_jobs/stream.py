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

from segan.data.batches import Batch, Plan, to_batch
from segan.data.records import Manifest, Shard, read_shard

MOST_TASKS = 4000  # every read task is an object in the driver's store from the start
SHARE_OF_STORE = 0.3  # of the cluster's object memory that records may stay in
ROW_BYTES = 64  # of id, epoch and position
BLOCK_BYTES = 16e6  # that a block grows to
STEPS_BYTES = 64e6  # of all ranks' blocks of the same steps, which a read task holds together
REST_SECONDS = 0.01


class SequenceSource(Datasource):
    """Read tasks over stretches of the sequence, each about a shard long."""

    def __init__(self, plan: Plan):
        super().__init__()
        self._plan = plan

    def estimate_inmemory_data_size(self) -> int:
        return (self._plan.stop - self._plan.start) * row_bytes(self._plan.sequence.manifest)

    def stretches(self) -> list[tuple[int, int]]:
        """(first, last) rows of each read task, the last past the plan's where blocks need it."""
        plan = self._plan
        at_once = plan.rows_per_step * steps_of_block(plan)
        wanted = max(_rows_of_shard(plan), (plan.stop - plan.start) / MOST_TASKS)
        size = max(1, round(wanted / at_once)) * at_once
        stop = plan.start - (plan.start - plan.stop) // at_once * at_once
        return [(at, min(at + size, stop)) for at in range(plan.start, stop, size)]

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        # By reference: the plan holds the manifest, and there are thousands of tasks.
        plan = ray.put(self._plan)
        shards = _keep_in_memory(self._plan)
        size = row_bytes(self._plan.sequence.manifest)
        return [
            ReadTask(
                functools.partial(_read, plan, shards, first, last),
                BlockMetadata(last - first, (last - first) * size, None, None),
            )
            for first, last in self.stretches()
        ]


class StreamConfig(DataConfig):
    """Deals a plan out to the workers of a Ray Train run.

    Ray Train asks at every start of the worker group, so a group that is started again after a
    fault gets a stream that begins where the latest checkpoint stands.
    """

    def configure(
        self, datasets: dict[str, Any], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, DataIterator]]:
        ((name, plan),) = datasets.items()
        splits = open_stream(plan.over(world_size)).streaming_split(world_size, equal=True)
        return [{name: split} for split in splits]


class Breathe(ExecutionCallback):
    """Lets the execution's loop rest between its steps.

    While its output waits to be taken, which is nearly always with a training behind it, the loop
    turns without pause and would take half a core from the training on the same machine.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(REST_SECONDS)


def open_stream(plan: Plan) -> Dataset:
    """The plan as a dataset, nothing read yet; every block of it is one rank's."""
    source = SequenceSource(plan)
    stream = ray.data.read_datasource(
        source,
        override_num_blocks=len(source.stretches()),
        # A task that waits for a shard gives its CPU back, and Ray would start ever more of them.
        concurrency=max(2, plan.workers),
    )
    stream.context.execution_options.preserve_order = True
    stream.context.custom_execution_callback_classes.append(Breathe)
    # Ray Data gathers small blocks and cuts large ones. A block that is above this and below
    # one and a half times it passes as it is.
    block = steps_of_block(plan) * plan.batch_size * row_bytes(plan.sequence.manifest)
    stream.context.target_max_block_size = int(block * 0.8)
    return stream


def batches(stream: DataIterator, plan: Plan) -> Iterator[Batch]:
    """A rank's batches, as Ray Data brings its blocks; views of the blocks' memory."""
    blocks = stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    for table in blocks:
        for at in range(0, table.num_rows, plan.batch_size):
            batch = to_batch(table.slice(at, plan.batch_size), plan.sequence.manifest)
            if batch.position < plan.stop:
                yield batch


def steps_of_block(plan: Plan) -> int:
    """Steps whose batches share a block: as many as fit, and at most a shard's."""
    batch = plan.batch_size * row_bytes(plan.sequence.manifest)
    fit = min(BLOCK_BYTES / batch, STEPS_BYTES / (batch * plan.workers))
    return max(1, min(int(fit), round(_rows_of_shard(plan) / plan.rows_per_step)))


def row_bytes(manifest: Manifest) -> int:
    return manifest.height * manifest.width * (3 + manifest.classes) + ROW_BYTES


def _read(plan_ref: Any, shards: dict[str, Any], first: int, last: int) -> Iterator[pa.Table]:
    plan: Plan = ray.get(plan_ref)

    def load(shard: Shard) -> pa.Table:
        if shard.name in shards:
            return ray.get(shards[shard.name])
        return read_shard(plan.records, shard)

    steps, size = steps_of_block(plan), plan.rows_per_step
    for table in plan.sequence.blocks(first, last, steps * size, load):
        for rank in range(plan.workers):
            own = range(rank * plan.batch_size, steps * size, size)
            yield pa.concat_tables(
                [table.slice(at, plan.batch_size) for at in own]
            ).combine_chunks()


def _rows_of_shard(plan: Plan) -> float:
    return plan.sequence.rows / len(plan.sequence.manifest.shards(plan.sequence.split))


def _keep_in_memory(plan: Plan) -> dict[str, Any]:
    """References to the shards' tables in Ray's object store, where they fit; else none.

    Each shard is then read from storage once and copied between nodes once, whatever the number
    of epochs.
    """
    manifest = plan.sequence.manifest
    bytes_of_records = plan.sequence.rows * row_bytes(manifest)
    store = ray.cluster_resources().get("object_store_memory", 0)
    if bytes_of_records > SHARE_OF_STORE * store:
        return {}
    read = ray.remote(read_shard).options(name="read_shard")
    return {
        shard.name: read.remote(plan.records, shard)
        for shard in manifest.shards(plan.sequence.split)
    }
