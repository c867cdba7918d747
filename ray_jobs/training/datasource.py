"""Reads the sampler's rows as Ray Data blocks, each with one rank's batches of a few steps."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from ray_jobs.cluster.capacity import READ_TASK_CPUS
from segan.data.records.format import Manifest, Shard, read_shard
from segan.data.stream.batches import StreamSpec

MAX_READ_TASKS = 4000  # each is an object in the driver's memory from the start
OBJECT_STORE_FRACTION = 0.3  # of the cluster's object store that cached records may fill
ROW_METADATA_BYTES = 64  # id, epoch and position
MAX_BLOCK_BYTES = 16e6
MAX_STEP_GROUP_BYTES = 64e6  # all ranks' blocks of the same steps, in one read task's memory


class SamplerDatasource(Datasource):
    """Read tasks over ranges of the sampler's rows, each about as long as a shard."""

    def __init__(self, spec: StreamSpec):
        super().__init__()
        self._spec = spec

    def estimate_inmemory_data_size(self) -> int:
        return (self._spec.stop - self._spec.start) * bytes_per_row(self._spec.sampler.manifest)

    def row_ranges(self) -> list[tuple[int, int]]:
        """(start, stop) of each read task; the last stop can lie past the run's to fill a block."""
        spec = self._spec
        rows_per_block_group = spec.global_batch_size * steps_per_block(spec)
        target_rows = max(_rows_per_shard(spec), (spec.stop - spec.start) / MAX_READ_TASKS)
        size = max(1, round(target_rows / rows_per_block_group)) * rows_per_block_group
        stop = spec.start - (spec.start - spec.stop) // rows_per_block_group * rows_per_block_group
        return [(at, min(at + size, stop)) for at in range(spec.start, stop, size)]

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        # By reference: the spec contains the manifest, and there are thousands of tasks.
        spec_ref = ray.put(self._spec)
        shard_refs = _cache_shards_in_object_store(self._spec)
        size = bytes_per_row(self._spec.sampler.manifest)
        return [
            ReadTask(
                functools.partial(_read_blocks, spec_ref, shard_refs, start, stop),
                BlockMetadata(stop - start, (stop - start) * size, None, None),
            )
            for start, stop in self.row_ranges()
        ]


def steps_per_block(spec: StreamSpec) -> int:
    """The number of steps whose batches share a block, at most those of one shard."""
    batch = spec.batch_size * bytes_per_row(spec.sampler.manifest)
    fit = min(MAX_BLOCK_BYTES / batch, MAX_STEP_GROUP_BYTES / (batch * spec.world_size))
    return max(1, min(int(fit), round(_rows_per_shard(spec) / spec.global_batch_size)))


def bytes_per_row(manifest: Manifest) -> int:
    """Of one image and its masks, uint8, in memory."""
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
            batches = [table.slice(at, spec.batch_size) for at in rank_rows]
            yield pa.concat_tables(batches).combine_chunks()


def _rows_per_shard(spec: StreamSpec) -> float:
    return spec.sampler.num_rows / len(spec.sampler.manifest.shards(spec.sampler.split))


def _cache_shards_in_object_store(spec: StreamSpec) -> dict[str, Any]:
    """References to the shards' tables by name; empty if they do not fit Ray's object store.

    Each cached shard is read from storage once and copied to each node once, whatever the number of
    epochs.
    """
    manifest = spec.sampler.manifest
    records_bytes = spec.sampler.num_rows * bytes_per_row(manifest)
    object_store_bytes = ray.cluster_resources().get("object_store_memory", 0)
    if records_bytes > OBJECT_STORE_FRACTION * object_store_bytes:
        return {}
    read = ray.remote(read_shard).options(name="read_shard", num_cpus=READ_TASK_CPUS)
    shards = manifest.shards(spec.sampler.split)
    return {shard.name: read.remote(spec.records, shard) for shard in shards}
