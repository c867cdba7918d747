"""Writes one shard of records: the unit of work of an ingest.

A pair whose files were decoded by an earlier ingest, identified by their checksums, is copied from
the existing shard. So an interrupted ingest resumes, and only new or changed files are decoded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from segan import storage
from segan.data.archive import zips
from segan.data.archive.images import decode_frame, decode_mask_frame
from segan.data.archive.reader import Pair, read_file
from segan.data.profile import image_stats
from segan.data.records.format import (
    Record,
    Samples,
    Shard,
    ShardFile,
    read_existing_shard,
    shard_prefix,
    write_shard,
)
from segan.errors import RejectedError

STATS_SCHEMA = image_stats.SCHEMA.append(pa.field("split", pa.string()))
PREFETCH_PAIRS = 4  # pairs whose files are read while another pair is decoded


@dataclass(frozen=True)
class ShardTask:
    """A shard to write.

    Attributes:
        out: URI of the records.
        size: (width, height) of the frames in pixels.
        existing_shards: shards that may contain some of the pairs, the most likely first.
        excluded: reason by id of the pairs to reject without reading them.
    """

    out: str
    split: str
    index: int
    num_shards: int
    size: tuple[int, int]
    pairs: tuple[Pair, ...]
    existing_shards: tuple[ShardFile, ...] = ()
    excluded: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardResult:
    """The result of a task.

    Attributes:
        shard: None if every pair was rejected.
        rejects: rows of name, split, reason.
        stats: a row of STATS_SCHEMA for each record.
        num_decoded: pairs that were not copied from existing shards.
    """

    task: ShardTask
    shard: Shard | None
    rejects: list[dict[str, str]]
    stats: pa.Table
    num_decoded: int


def write_task(task: ShardTask) -> ShardResult:
    """Reads the pairs of a task and writes their shard."""
    records: list[Record] = []
    rejects: list[dict[str, str]] = []
    cache, num_decoded = _ShardCache(task), 0
    for pair, content in _prefetch(task.pairs, task.excluded):
        try:
            if isinstance(content, RejectedError):
                raise content
            sources = (storage.sha256(content[0]), storage.sha256(content[1]))
            record = cache.get(pair.id, sources)
            if record is None:
                record = _decode(pair, content, sources, task.size)
                num_decoded += 1
            records.append(record)
        except RejectedError as error:
            rejects.append({"name": pair.image, "split": task.split, "reason": str(error)})
    shard, stats = _write_records(task, records), _compute_stats(task.split, records)
    return ShardResult(task, shard, rejects, stats, num_decoded)


def read_record(pair: Pair, size: tuple[int, int]) -> Record:
    """Reads, checks and resizes one pair: the image bilinear with antialiasing, the mask nearest.

    Args:
        size: (width, height) of the frame in pixels; 180 x 135 in the paper.

    Raises:
        RejectedError: the reason names the file, what was expected and what was found.
    """
    content = _read_pair(pair, read_file)
    return _decode(pair, content, (storage.sha256(content[0]), storage.sha256(content[1])), size)


class _ShardCache:
    """Records of existing shards by the checksums of their files; shards are read lazily."""

    def __init__(self, task: ShardTask):
        self._task = task
        self._unread = list(task.existing_shards)
        self._known: dict[tuple[str, str], Record] = {}

    def get(self, sample_id: str, sources: tuple[str, str]) -> Record | None:
        width, height = self._task.size
        while sources not in self._known and self._unread:
            file = self._unread.pop(0)
            for record in read_existing_shard(self._task.out, file, height, width):
                self._known[record.source_digests] = record
        found = self._known.get(sources)
        return found and dataclasses.replace(found, id=sample_id)  # the files may be renamed


def _prefetch(
    pairs: tuple[Pair, ...], excluded: Mapping[str, str]
) -> Iterator[tuple[Pair, tuple[bytes, bytes] | RejectedError]]:
    """Yields each pair with its files' content or an error; the next pairs are read meanwhile."""

    def read(pair: Pair) -> tuple[bytes, bytes] | RejectedError:
        if pair.id in excluded:
            return RejectedError(excluded[pair.id])
        try:
            return _read_pair(pair, lambda uri: read_file(uri, members.read))
        except RejectedError as error:
            return error

    included = [pair for pair in pairs if pair.id not in excluded]
    wanted = [*(pair.image for pair in included), *(pair.mask or "" for pair in included)]
    with zips.ZipReader(wanted) as members, ThreadPoolExecutor(PREFETCH_PAIRS) as pool:
        futures = [pool.submit(read, pair) for pair in pairs[:PREFETCH_PAIRS]]
        for number, pair in enumerate(pairs):
            content = futures.pop(0).result()
            if number + PREFETCH_PAIRS < len(pairs):
                futures.append(pool.submit(read, pairs[number + PREFETCH_PAIRS]))
            yield pair, content


def _read_pair(pair: Pair, read: Callable[[str], bytes]) -> tuple[bytes, bytes]:
    assert pair.mask is not None, "a record needs a mask"
    return read(pair.image), read(pair.mask)


def _decode(
    pair: Pair, content: tuple[bytes, bytes], sources: tuple[str, str], size: tuple[int, int]
) -> Record:
    assert pair.mask is not None, "a record needs a mask"
    image, original = decode_frame(storage.basename(pair.image), content[0], size)
    mask = decode_mask_frame(storage.basename(pair.mask), content[1], original, size)
    return Record(pair.id, image, mask[None], original, sources)


def _write_records(task: ShardTask, records: list[Record]) -> Shard | None:
    if not records:
        return None
    width, height = task.size
    prefix = shard_prefix(task.split, task.index, task.num_shards)
    return write_shard(task.out, prefix, records, height, width, 1)


def _compute_stats(split: str, records: list[Record]) -> pa.Table:
    if not records:
        return STATS_SCHEMA.empty_table()
    samples = Samples(
        [record.id for record in records],
        np.stack([record.image for record in records]),
        np.stack([record.mask for record in records]),
    )
    stats = image_stats.compute_stats(samples, [record.original_size for record in records])
    return stats.append_column(STATS_SCHEMA.field("split"), [[split] * len(records)])
