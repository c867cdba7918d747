"""The stream's order: records as one unbroken sequence over all epochs.

The sequence is epoch 0 in one order, epoch 1 in another, and so on, with nothing between them: a
batch may hold the last images of one epoch and the first of the next, and no row is left out. The
order is a function of (seed, epoch, sample id) alone. A step takes the next `batch x workers`
rows, rank r the r-th part of them, so where a run stands is one number: the rows it has seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from segan.data.records import Manifest, Shard

LoadShard = Callable[[Shard], pa.Table]


@dataclass(frozen=True)
class Piece:
    """Rows first to last - 1 of a shard, in the order that an epoch gives the shard's rows."""

    epoch: int
    shard: Shard
    first: int
    last: int


@dataclass(frozen=True)
class Sequence:
    """The training split of some records, over and over, in seeded order."""

    manifest: Manifest
    split: str
    seed: int

    @property
    def rows(self) -> int:
        """Rows of one epoch."""
        return self.manifest.rows(self.split)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """The pieces that make up rows start to stop - 1 of the sequence, in their order."""
        position = start - start % self.rows if self.rows else stop
        while position < stop:
            epoch = position // self.rows
            for shard in self._shards(epoch):
                first, last = max(start - position, 0), min(stop - position, shard.rows)
                if first < last:
                    yield Piece(epoch, shard, first, last)
                position += shard.rows

    def blocks(self, start: int, stop: int, size: int, load: LoadShard) -> Iterator[pa.Table]:
        """Rows start to stop - 1 as tables of `size` rows, with columns epoch and position added.

        Args:
            start, stop: rows of the sequence; `size` must divide their distance.
            load: reads a shard; called once for each piece.
        """
        assert (stop - start) % size == 0, "a block is always full"
        waiting: list[pa.Table] = []
        position = start
        for piece in self.pieces(start, stop):
            waiting.append(self._rows_of(piece, load(piece.shard), position))
            position += piece.last - piece.first
            while sum(table.num_rows for table in waiting) >= size:
                table = pa.concat_tables(waiting)
                yield table.slice(0, size).combine_chunks()
                waiting = [table.slice(size)]

    def _shards(self, epoch: int) -> list[Shard]:
        shards = self.manifest.shards(self.split)
        return sorted(shards, key=lambda shard: _key(self.seed, epoch, shard.place))

    def _rows_of(self, piece: Piece, table: pa.Table, position: int) -> pa.Table:
        keys = [_key(self.seed, piece.epoch, sample_id) for sample_id in table["id"].to_pylist()]
        order = sorted(range(len(keys)), key=keys.__getitem__)[piece.first : piece.last]
        rows = table.select(["id", "image", "mask"]).take(pa.array(order, pa.int64()))
        epochs = pa.array(np.full(len(order), piece.epoch, np.int32))
        positions = pa.array(np.arange(position, position + len(order), dtype=np.int64))
        return rows.append_column("epoch", epochs).append_column("position", positions)


def _key(seed: int, epoch: int, name: str) -> bytes:
    return hashlib.blake2b(f"order/{seed}/{epoch}/{name}".encode(), digest_size=16).digest()
