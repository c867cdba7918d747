"""Batches of the training stream."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from segan.data.records.format import Shard, read_shard, to_samples
from segan.data.stream.lanes import BatchPlan, Lanes, ShardSlice, Visit
from segan.data.stream.sampler import DeterministicSampler
from segan.errors import UsageError
from segan.utils.prefetch import prefetch
from segan.utils.text import count_noun

SHARDS_AHEAD = 2  # that a rank loads before it needs them
LOCAL_CACHED_SHARDS = 16  # kept in memory by `local_batches`

LoadShard = Callable[[ShardSlice], pa.Table]


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of the sequence.

    Attributes:
        position: of the first row in the sequence.
        epochs: of each row; a batch can span two epochs.
        image: uint8 [B, H, W, 3].
        mask: uint8 [B, classes, H, W] of 0 and 1.
    """

    position: int
    epochs: list[int]
    ids: list[str]
    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class StreamSpec:
    """The rows that a run reads: where it starts, where it stops and how many per step.

    Attributes:
        records: URI of the records.
        start: rows seen before; the next step takes rows `start` to start + global_batch_size - 1.
        batch_size: per worker.
        lanes: see `segan.data.stream.lanes`; fixed for a run.

    Raises:
        UsageError: a step needs more rows than the split has.
    """

    records: str
    sampler: DeterministicSampler
    epochs: int
    start: int
    batch_size: int
    world_size: int
    lanes: int = 1

    def __post_init__(self) -> None:
        rows = self.sampler.num_rows
        if self.global_batch_size > rows:
            workers = count_noun(self.world_size, "worker")
            raise UsageError(
                f"training.batch_size {self.batch_size} with {workers} needs "
                f"{self.global_batch_size} images per step, but split {self.sampler.split!r} has "
                f"{rows}; use a smaller batch size"
            )

    def with_world_size(self, world_size: int) -> StreamSpec:
        """The same rows for another number of workers."""
        return dataclasses.replace(self, world_size=world_size)

    @functools.cached_property
    def stop(self) -> int:
        """End of the rows; rows of the last epoch that do not fill a step are not used."""
        remaining = self.sampler.num_rows * self.epochs - self.start
        return self.start + remaining - remaining % self.global_batch_size

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.world_size

    @property
    def plan(self) -> BatchPlan:
        """A new plan of the run's batches."""
        return BatchPlan(self.sampler, Lanes(self.lanes, self.batch_size, self.sampler.num_rows))

    def positions(self, rank: int) -> range:
        """The positions at which a rank's batches begin."""
        return range(self.start + rank * self.batch_size, self.stop, self.global_batch_size)

    @property
    def is_exhausted(self) -> bool:
        """Whether no step is left."""
        return self.start >= self.stop


def shard_visits(spec: StreamSpec, ranks: Collection[int]) -> Iterator[tuple[int, ShardSlice]]:
    """Yields the visits of these ranks to shards, in the order of need.

    A visit comes as the position of the first batch that needs it, and that batch's slice of it.
    """
    plan, visits = spec.plan, dict[int, Visit]()
    for step in range(spec.start, spec.stop, spec.global_batch_size):
        for rank in ranks:
            position = step + rank * spec.batch_size
            for part in plan.slices(position):
                if visits.get(part.lane) != part.visit:
                    visits[part.lane] = part.visit
                    yield position, part


def visit_ranks(spec: StreamSpec, plan: BatchPlan, position: int, visit: Visit) -> set[int]:
    """The ranks with a batch of a visit, of which the first begins at a position."""
    ranks: set[int] = set()
    while position < spec.stop and any(part.visit == visit for part in plan.slices(position)):
        ranks.add((position - spec.start) // spec.batch_size % spec.world_size)
        position += spec.batch_size * spec.lanes
    return ranks


def read_batches(spec: StreamSpec, rank: int, load: LoadShard) -> Iterator[Batch]:
    """Yields a rank's batches, whose pixels are copied once, from the shards' memory.

    At most one shard of each of the rank's lanes is in memory, and `SHARDS_AHEAD`.

    Args:
        load: returns a shard's table; called in a thread, once for each of `shard_visits`.
    """
    plan, manifest = spec.plan, spec.sampler.manifest
    height, width, classes = manifest.height, manifest.width, manifest.classes
    visits = (part for _, part in shard_visits(spec, (rank,)))
    tables = prefetch(map(load, visits), SHARDS_AHEAD)
    opened: dict[int, _OpenShard] = {}
    with contextlib.closing(tables):
        for position in spec.positions(rank):
            image = np.empty((spec.batch_size, height, width, 3), np.uint8)
            mask = np.empty((spec.batch_size, classes, height, width), np.uint8)
            ids: list[str] = []
            epochs: list[int] = []
            for part in plan.slices(position):
                if part.lane not in opened or opened[part.lane].visit != part.visit:
                    opened.pop(part.lane, None)  # its memory is free while the next one is awaited
                    opened[part.lane] = _OpenShard(part, next(tables), spec.sampler)
                rows = slice(len(ids), len(ids) + part.stop - part.start)
                ids += opened[part.lane].take(part, image[rows], mask[rows])
                epochs += [part.epoch] * (part.stop - part.start)
            yield Batch(position, epochs, ids, image, mask)


def local_batches(spec: StreamSpec, rank: int = 0) -> Iterator[Batch]:
    """Yields a rank's batches of a run, reading the records in this process."""

    @functools.lru_cache(maxsize=LOCAL_CACHED_SHARDS)
    def read(shard: Shard) -> pa.Table:
        return read_shard(spec.records, shard)

    return read_batches(spec, rank, lambda part: read(part.shard))


class _OpenShard:
    """A shard in memory, in the order of a visit."""

    def __init__(self, part: ShardSlice, table: pa.Table, sampler: DeterministicSampler):
        self.visit = part.visit
        self._samples = to_samples(table, sampler.manifest)
        self._order = sampler.row_order(part.epoch, self._samples.ids)

    def take(self, part: ShardSlice, image: np.ndarray, mask: np.ndarray) -> list[str]:
        """Copies the rows of a slice into `image` and `mask`; returns their ids."""
        order = self._order[part.start : part.stop]
        for source, target in ((self._samples.image, image), (self._samples.mask, mask)):
            # With the default mode numpy would copy through a buffer of its own.
            np.take(source, order, axis=0, out=target, mode="clip")
        return [self._samples.ids[row] for row in order]
