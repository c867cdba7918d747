"""Reads shards as Ray Data blocks: one read task and one block a shard."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from ray_jobs.cluster.capacity import READ_TASK_CPUS
from segan.data.records.format import Manifest, Shard, read_shard

ROW_METADATA_BYTES = 64  # its id
COLUMNS = ("id", "image", "mask")  # of a shard that a training needs


class ShardDatasource(Datasource):
    """Shards of records in a given order."""

    def __init__(self, records: str, shards: Sequence[Shard], row_bytes: int):
        """
        Args:
            records: URI of the records.
            row_bytes: see `bytes_per_row`.
        """
        super().__init__()
        self._records, self._shards, self._row_bytes = records, shards, row_bytes

    def estimate_inmemory_data_size(self) -> int:
        return sum(shard.num_rows for shard in self._shards) * self._row_bytes

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                functools.partial(_read_block, self._records, shard),
                BlockMetadata(shard.num_rows, shard.num_rows * self._row_bytes, None, None),
            )
            for shard in self._shards
        ]


def bytes_per_row(manifest: Manifest) -> int:
    """Of one image and its masks, uint8, in memory."""
    return manifest.height * manifest.width * (3 + manifest.classes) + ROW_METADATA_BYTES


def shard_dataset(
    records: str, shards: Sequence[Shard], manifest: Manifest, concurrency: int | None
) -> Dataset:
    """The lazy dataset of shards; its blocks are the shards, in their order.

    Args:
        concurrency: read tasks at the same time; None for as many as there are CPUs.
    """
    dataset = ray.data.read_datasource(
        ShardDatasource(records, shards, bytes_per_row(manifest)),
        override_num_blocks=len(shards),
        # Ray's default strategy prefers the node of the caller, whose workers need the shards.
        ray_remote_args={"num_cpus": READ_TASK_CPUS, "scheduling_strategy": "DEFAULT"},
        concurrency=concurrency,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.preserve_order = True
    dataset.context.target_max_block_size = None  # a block is what a read task yields
    return dataset


def _read_block(records: str, shard: Shard) -> Iterator[pa.Table]:
    yield read_shard(records, shard).select([*COLUMNS])
