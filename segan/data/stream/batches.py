"""Batches of the training stream."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from segan.data.records.format import Manifest, Shard, read_shard, to_samples
from segan.data.stream.sampler import DeterministicSampler
from segan.errors import UsageError
from segan.utils.text import count_noun


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

    Raises:
        UsageError: a step needs more rows than the split has.
    """

    records: str
    sampler: DeterministicSampler
    epochs: int
    start: int
    batch_size: int
    world_size: int

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

    @property
    def stop(self) -> int:
        """End of the rows; rows of the last epoch that do not fill a step are not used."""
        remaining = self.sampler.num_rows * self.epochs - self.start
        return self.start + remaining - remaining % self.global_batch_size

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.world_size

    @property
    def is_exhausted(self) -> bool:
        """Whether no step is left."""
        return self.start >= self.stop


def to_batch(table: pa.Table, manifest: Manifest) -> Batch:
    """Converts rows of `DeterministicSampler.blocks` to arrays, without a copy from one chunk."""
    samples = to_samples(table, manifest)
    position = table["position"][0].as_py()
    return Batch(position, table["epoch"].to_pylist(), samples.ids, samples.image, samples.mask)


def local_batches(spec: StreamSpec, rank: int = 0) -> Iterator[Batch]:
    """Yields a rank's batches of a run, reading the records in this process.

    Every rank reads all rows up to its own, so this is for a few ranks on one machine.
    """
    manifest = spec.sampler.manifest

    @functools.lru_cache(maxsize=16)
    def load(shard: Shard) -> pa.Table:
        return read_shard(spec.records, shard)

    blocks = spec.sampler.blocks(spec.start, spec.stop, spec.batch_size, load)
    for table in itertools.islice(blocks, rank, None, spec.world_size):
        yield to_batch(table, manifest)
