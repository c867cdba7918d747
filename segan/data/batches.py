"""What the training loop is fed: a worker's share of the sequence, a batch at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from segan.data.records import Manifest, Shard, read_shard, to_frames
from segan.data.sequence import Sequence
from segan.errors import UsageError
from segan.runs import Checkpoint


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of the sequence.

    Attributes:
        position: of the first row in the sequence.
        epochs: int [B], the epoch of each row; a batch may straddle two.
        image: uint8 [B, H, W, 3].
        mask: uint8 [B, classes, H, W] of 0 and 1.
    """

    position: int
    epochs: list[int]
    ids: list[str]
    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Plan:
    """The rows of a run: where it stands, where it ends, and how much each step takes.

    Attributes:
        start: rows seen before; the next step takes rows start to start + batch_size * workers.
        checkpoint: which the run goes on from, at `start`; None at its beginning.

    Raises:
        UsageError: one step would take more than the whole training split.
    """

    records: str
    sequence: Sequence
    epochs: int
    start: int
    batch_size: int
    workers: int
    checkpoint: Checkpoint | None = None

    def __post_init__(self) -> None:
        rows = self.sequence.rows
        if self.rows_per_step > rows:
            raise UsageError(
                f"training.batch_size {self.batch_size} with {self.workers} workers takes "
                f"{self.rows_per_step} images a step, but split {self.sequence.split!r} has "
                f"{rows}; use a smaller batch"
            )

    def over(self, workers: int) -> Plan:
        """The same rows for another number of workers."""
        return dataclasses.replace(self, workers=workers)

    @property
    def stop(self) -> int:
        """Just past the last row; what is left of the last epoch below a full step is not used."""
        left = self.sequence.rows * self.epochs - self.start
        return self.start + left - left % self.rows_per_step

    @property
    def rows_per_step(self) -> int:
        return self.batch_size * self.workers

    @property
    def done(self) -> bool:
        """Whether there is no step left."""
        return self.start >= self.stop


def to_batch(table: pa.Table, manifest: Manifest) -> Batch:
    """A block of the sequence as arrays."""
    frames = to_frames(table, manifest)
    position = table["position"][0].as_py()
    return Batch(position, table["epoch"].to_pylist(), frames.ids, frames.image, frames.mask)


def local_batches(plan: Plan) -> Iterator[Batch]:
    """The batches of a run with one worker, read in this process."""
    assert plan.workers == 1, "several workers are fed by Ray Data"
    manifest = plan.sequence.manifest

    @functools.lru_cache(maxsize=16)
    def load(shard: Shard) -> pa.Table:
        return read_shard(plan.records, shard)

    for table in plan.sequence.blocks(plan.start, plan.stop, plan.batch_size, load):
        yield to_batch(table, manifest)
