"""Deterministic order of the training samples over all epochs.

The epochs follow one another without a gap, each shuffled differently: a batch can hold the last
samples of one epoch and the first of the next, and no sample is dropped. The order depends on
(seed, epoch, sample id) alone. A step takes the next `batch size x world size` rows, rank r the
r-th part of them, so the state of a run's stream is one number: the rows it has seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from segan.data.records.format import Manifest, Shard

LoadShard = Callable[[Shard], pa.Table]


@dataclass(frozen=True)
class ShardSlice:
    """Rows `start` to `stop` - 1 of a shard in the order of an epoch."""

    epoch: int
    shard: Shard
    start: int
    stop: int


@dataclass(frozen=True)
class DeterministicSampler:
    """An endless sequence of a split's rows, shuffled by seed and epoch."""

    manifest: Manifest
    split: str
    seed: int

    @property
    def num_rows(self) -> int:
        """Number of rows per epoch."""
        return self.manifest.num_rows(self.split)

    def shard_slices(self, start: int, stop: int) -> Iterator[ShardSlice]:
        """Yields the shard slices that make up rows `start` to `stop` - 1 of the sequence."""
        position = start - start % self.num_rows if self.num_rows else stop
        while position < stop:
            epoch = position // self.num_rows
            for shard in self._shuffled_shards(epoch):
                first, end = max(start - position, 0), min(stop - position, shard.num_rows)
                if first < end:
                    yield ShardSlice(epoch, shard, first, end)
                position += shard.num_rows

    def blocks(self, start: int, stop: int, size: int, load: LoadShard) -> Iterator[pa.Table]:
        """Yields rows `start` to `stop` - 1 as tables of `size` rows, which can have many chunks.

        Args:
            start, stop: rows of the sequence; `stop - start` must be a multiple of `size`.
            load: reads a shard; called once for each shard slice.

        Returns:
            Tables with the columns id, image, mask, epoch and position (in the sequence).
        """
        assert (stop - start) % size == 0, f"{stop - start} rows are not a multiple of {size}"
        pending: list[pa.Table] = []
        position = start
        for shard_slice in self.shard_slices(start, stop):
            pending.append(self._take_rows(shard_slice, load(shard_slice.shard), position))
            position += shard_slice.stop - shard_slice.start
            while sum(table.num_rows for table in pending) >= size:
                table = pa.concat_tables(pending)
                yield table.slice(0, size)
                pending = [table.slice(size)]

    def _shuffled_shards(self, epoch: int) -> list[Shard]:
        shards = self.manifest.shards(self.split)
        return sorted(shards, key=lambda shard: _order_key(self.seed, epoch, shard.prefix))

    def _take_rows(self, shard_slice: ShardSlice, table: pa.Table, position: int) -> pa.Table:
        keys = [
            _order_key(self.seed, shard_slice.epoch, sample_id)
            for sample_id in table["id"].to_pylist()
        ]
        order = sorted(range(len(keys)), key=keys.__getitem__)[shard_slice.start : shard_slice.stop]
        rows = table.select(["id", "image", "mask"]).take(pa.array(order, pa.int64()))
        epochs = pa.array(np.full(len(order), shard_slice.epoch, np.int32))
        positions = pa.array(np.arange(position, position + len(order), dtype=np.int64))
        return rows.append_column("epoch", epochs).append_column("position", positions)


def _order_key(seed: int, epoch: int, name: str) -> bytes:
    return hashlib.blake2b(f"order/{seed}/{epoch}/{name}".encode(), digest_size=16).digest()
