"""Deterministic order of the training samples over all epochs.

The epochs follow one another without a gap, each shuffled differently: a batch can hold the last
samples of one epoch and the first of the next, and no sample is dropped. The order of an epoch
depends on (seed, epoch, sample id) alone: its shards in a seeded order, and the rows of each shard
in a seeded order.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from segan.data.records.format import Manifest, Shard


@dataclass(frozen=True)
class EpochOrder:
    """The shards of an epoch in order.

    Attributes:
        starts: int64 [shards + 1], the row of the epoch at which each shard begins, and their sum.
    """

    shards: list[Shard]
    starts: np.ndarray

    def find(self, row: int) -> int:
        """The index of the shard that holds a row of the epoch."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1


@dataclass(frozen=True)
class DeterministicSampler:
    """An endless sequence of a split's rows, shuffled by seed and epoch."""

    manifest: Manifest
    split: str
    seed: int

    @functools.cached_property
    def num_rows(self) -> int:
        """Number of rows per epoch."""
        return self.manifest.num_rows(self.split)

    def epoch_order(self, epoch: int) -> EpochOrder:
        """The shards of an epoch, counted from 0."""
        shards = self.manifest.shards(self.split)
        ordered = [shards[i] for i in self._order(epoch, (shard.prefix for shard in shards))]
        return EpochOrder(ordered, np.cumsum([0, *(shard.num_rows for shard in ordered)]))

    def row_order(self, epoch: int, ids: list[str]) -> np.ndarray:
        """The order of a shard's rows in an epoch, int64 [rows], from their ids."""
        return np.array(self._order(epoch, ids), np.int64)

    def _order(self, epoch: int, names: Iterable[str]) -> list[int]:
        """The order of names by the hash of (seed, epoch, name)."""
        prefix = hashlib.blake2b(f"order/{self.seed}/{epoch}/".encode(), digest_size=16)
        keys = []
        for name in names:
            key = prefix.copy()
            key.update(name.encode())
            keys.append(key.digest())
        return sorted(range(len(keys)), key=keys.__getitem__)
