"""The frames of a split that an evaluation reads, without all of them in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from segan.data.records.format import Manifest, Samples, Shard, read_shard, to_samples
from segan.utils.prefetch import prefetch

KEPT_BYTES = 256e6  # of a rank's frames that are read once for all validations


class FrameShare:
    """The frames of a split that are one rank's: whole shards in turn, or rows of one shard.

    Each shard is read by one rank, whatever their number; where there are fewer shards than ranks,
    the ranks of a shard share its rows. Frames are read again each time, one shard in advance,
    unless all of them take at most KEPT_BYTES.

    Attributes:
        shards: that this rank reads.
        count: of this rank's frames.
    """

    def __init__(
        self, records: str, manifest: Manifest, split: str, rank: int = 0, world_size: int = 1
    ):
        """
        Args:
            records: URI of the records.
        """
        self._records, self._manifest = records, manifest
        shards = manifest.shards(split)
        self.shards, self._rows = shards[rank::world_size], slice(None)
        if len(shards) < world_size:
            number = rank % len(shards)
            sharing = len(range(number, world_size, len(shards)))
            self.shards, self._rows = (shards[number],), slice(rank // len(shards), None, sharing)
        self.count = sum(len(range(shard.num_rows)[self._rows]) for shard in self.shards)
        frame_bytes = manifest.height * manifest.width * (3 + manifest.classes)
        self._keeps = self.count * frame_bytes <= KEPT_BYTES
        self._kept: list[Samples] | None = None

    def batches(self, size: int) -> Iterator[Samples]:
        """Yields the frames, at most `size` at once, always in the same order.

        Raises:
            StorageError: a shard is missing or damaged.
        """
        for samples in self._parts():
            for start in range(0, len(samples.ids), size):
                yield _take(samples, slice(start, start + size))

    def _parts(self) -> Iterator[Samples]:
        if self._kept is not None:
            yield from self._kept
            return
        kept = []
        for samples in prefetch(map(self._read, self.shards), 1):
            if self._keeps:
                kept.append(samples)
            yield samples
        if self._keeps:
            self._kept = kept

    def _read(self, shard: Shard) -> Samples:
        samples = to_samples(read_shard(self._records, shard), self._manifest)
        if self._rows == slice(None):
            return samples
        part = _take(samples, self._rows)
        # Copies, so that the memory of the others' rows is free.
        return Samples(part.ids, part.image.copy(), part.mask.copy())


def map_samples(records: str, manifest: Manifest, split: str, folder: Path) -> Samples:
    """Reads a split into files; its arrays are memory-mapped, and the system frees their pages.

    Args:
        records: URI of the records.
        folder: where the files go, as many bytes as the split has in memory.
    """
    height, width, count = manifest.height, manifest.width, manifest.num_rows(split)
    shapes = {"image": (count, height, width, 3), "mask": (count, manifest.classes, height, width)}
    files = {name: folder / f"{split}-{name}.npy" for name in shapes}
    arrays = {
        name: np.lib.format.open_memmap(files[name], "w+", np.uint8, shape)
        for name, shape in shapes.items()
    }
    ids: list[str] = []
    for shard in manifest.shards(split):
        samples = to_samples(read_shard(records, shard), manifest)
        rows = slice(len(ids), len(ids) + len(samples.ids))
        arrays["image"][rows], arrays["mask"][rows] = samples.image, samples.mask
        ids += samples.ids
    return Samples(ids, **{name: np.load(file, mmap_mode="r") for name, file in files.items()})


def _take(samples: Samples, rows: slice) -> Samples:
    return Samples(samples.ids[rows], samples.image[rows], samples.mask[rows])
