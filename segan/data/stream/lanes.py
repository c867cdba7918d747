"""Which rows of which shards each batch of a run consists of.

The batches of the sequence are dealt to lanes in turn, and a lane takes a contiguous part of each
epoch's rows, so that it reads one shard after another:

    batch      0       1       2       3       4       5    ...
    lane       0       1       2       0       1       2    ...
    rows     0-24   667-691 ...      25-49   692-716 ...    of 2000, with 3 lanes of batches of 25

A run has as many lanes as it begins with workers, so each worker reads its own shards. The number
of lanes stays with the run, and its batches with it: another number of workers takes the same
batches in the same order, but a worker then reads from several lanes, or shares one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from segan.data.records.format import Shard
from segan.data.stream.sampler import DeterministicSampler, EpochOrder


class Visit(NamedTuple):
    """A lane's reading of a shard in an epoch, of which it takes all its rows."""

    epoch: int
    lane: int
    shard_name: str


@dataclass(frozen=True)
class ShardSlice:
    """Rows `start` to `stop` - 1 of a shard, in the order of an epoch, read by a lane."""

    epoch: int
    lane: int
    shard: Shard
    start: int
    stop: int

    @property
    def visit(self) -> Visit:
        """The visit that the slice is a part of."""
        return Visit(self.epoch, self.lane, self.shard.name)


@dataclass(frozen=True)
class Lanes:
    """Deals an endless sequence, in batches, to `count` lanes in turn.

    Attributes:
        num_rows: of an epoch.
    """

    count: int
    batch_size: int
    num_rows: int

    def lane(self, position: int) -> int:
        """The lane of a position of the sequence."""
        return position // self.batch_size % self.count

    def rows_before(self, position: int) -> np.ndarray:
        """The number of positions before this one in each lane, int64 [count]."""
        rounds, rest = divmod(position, self.batch_size * self.count)
        partial = rest - self.batch_size * np.arange(self.count, dtype=np.int64)
        before: np.ndarray = rounds * self.batch_size + partial.clip(0, self.batch_size)
        return before

    def epoch_offsets(self, epoch: int) -> np.ndarray:
        """What added to a position's offset in its lane gives its row of the epoch, [count]."""
        first = self.rows_before(epoch * self.num_rows)
        rows = self.rows_before((epoch + 1) * self.num_rows) - first
        offsets: np.ndarray = np.cumsum(rows) - rows - first
        return offsets

    def offset(self, position: int) -> int:
        """The number of positions before this one in its own lane."""
        rounds = position // (self.batch_size * self.count)
        return rounds * self.batch_size + position % self.batch_size


class BatchPlan:
    """Finds the slices of a run's batches; keeps the order of the latest epochs."""

    def __init__(self, sampler: DeterministicSampler, lanes: Lanes):
        self._sampler, self._lanes = sampler, lanes
        self._epochs: dict[int, tuple[EpochOrder, np.ndarray]] = {}

    def slices(self, position: int) -> Iterator[ShardSlice]:
        """Yields the slices of the batch that begins at a position, in its order."""
        stop, lane = position + self._lanes.batch_size, self._lanes.lane(position)
        while position < stop:
            epoch = position // self._lanes.num_rows
            end = min(stop, (epoch + 1) * self._lanes.num_rows)
            order, offsets = self._epoch(epoch)
            row = int(offsets[lane]) + self._lanes.offset(position)
            last = row + end - position
            index = order.find(row)
            while row < last:
                begin, until = int(order.starts[index]), min(last, int(order.starts[index + 1]))
                yield ShardSlice(epoch, lane, order.shards[index], row - begin, until - begin)
                row, index = until, index + 1
            position = end

    def _epoch(self, epoch: int) -> tuple[EpochOrder, np.ndarray]:
        if epoch not in self._epochs:
            self._epochs = {e: plan for e, plan in self._epochs.items() if abs(epoch - e) <= 1}
            order = self._sampler.epoch_order(epoch)
            self._epochs[epoch] = order, self._lanes.epoch_offsets(epoch)
        return self._epochs[epoch]
