"""Writes one shard of records: the unit of work of an ingest.

A pair whose files were decoded by an earlier ingest, identified by their checksums, is copied from
the existing shard. So an interrupted ingest resumes, and only new or changed files are decoded.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from segan import storage
from segan.data.archive import zips
from segan.data.archive.class_masks import decode_masks
from segan.data.archive.images import decode_frame
from segan.data.archive.label_classes import LabelClasses
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

PREFETCH_PAIRS = 4  # pairs whose files are read while another pair is decoded

_Content = tuple[bytes, list[bytes]]  # of an image's file and of its masks'


def stats_schema(classes: int) -> pa.Schema:
    """The schema of the image statistics of records."""
    return image_stats.make_schema(classes).append(pa.field("split", pa.string()))


@dataclass(frozen=True)
class ShardTask:
    """A shard to write.

    Attributes:
        out: URI of the records.
        size: (width, height) of the frames in pixels.
        existing_shards: shards that may contain some of the pairs, the most likely first.
        excluded: reason by id of the pairs to reject without reading them.
        classes: of the archive; None where an image has one mask, that of the lesion.
    """

    out: str
    split: str
    index: int
    num_shards: int
    size: tuple[int, int]
    pairs: tuple[Pair, ...]
    existing_shards: tuple[ShardFile, ...] = ()
    excluded: Mapping[str, str] = field(default_factory=dict)
    classes: LabelClasses | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes) if self.classes else 1


@dataclass(frozen=True)
class ShardResult:
    """The result of a task.

    Attributes:
        shard: None if every pair was rejected.
        rejects: rows of name, split, reason.
        stats: a row of `stats_schema` for each record.
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
            sources = (storage.sha256(content[0]), mask_digest(content[1], task.classes))
            record = cache.get(pair.id, sources)
            if record is None:
                record = _decode(pair, content, sources, task.size, task.classes)
                num_decoded += 1
            records.append(record)
        except RejectedError as error:
            rejects.append({"name": pair.image, "split": task.split, "reason": str(error)})
    shard, stats = _write_records(task, records), _compute_stats(task, records)
    return ShardResult(task, shard, rejects, stats, num_decoded)


def read_record(pair: Pair, size: tuple[int, int], classes: LabelClasses | None = None) -> Record:
    """Reads, checks and resizes one pair: the image bilinear with antialiasing, the masks nearest.

    Args:
        size: (width, height) of the frame in pixels; 180 x 135 in the paper.
        classes: of its archive.

    Raises:
        RejectedError: the reason names the file, what was expected and what was found.
    """
    content = _read_pair(pair, read_file)
    sources = (storage.sha256(content[0]), mask_digest(content[1], classes))
    return _decode(pair, content, sources, size, classes)


def mask_digest(masks: Sequence[bytes], classes: LabelClasses | None) -> str:
    """The checksum of a pair's mask files; for label images also that of their values."""
    digests = [storage.sha256(content) for content in masks]
    if classes is None:
        return digests[0]
    return storage.sha256(json.dumps([digests, classes.values]).encode())


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
            for record in read_existing_shard(
                self._task.out, file, height, width, self._task.num_classes
            ):
                self._known[record.source_digests] = record
        found = self._known.get(sources)
        return found and dataclasses.replace(found, id=sample_id)  # the files may be renamed


def _prefetch(
    pairs: tuple[Pair, ...], excluded: Mapping[str, str]
) -> Iterator[tuple[Pair, _Content | RejectedError]]:
    """Yields each pair with its files' content or an error; the next pairs are read meanwhile."""

    def read(pair: Pair) -> _Content | RejectedError:
        if pair.id in excluded:
            return RejectedError(excluded[pair.id])
        try:
            return _read_pair(pair, lambda uri: read_file(uri, members.read))
        except RejectedError as error:
            return error

    included = [pair for pair in pairs if pair.id not in excluded]
    wanted = [pair.image for pair in included]
    wanted += [uri for pair in included for uri in pair.mask_files]
    with zips.ZipReader(wanted) as members, ThreadPoolExecutor(PREFETCH_PAIRS) as pool:
        futures = [pool.submit(read, pair) for pair in pairs[:PREFETCH_PAIRS]]
        for number, pair in enumerate(pairs):
            content = futures.pop(0).result()
            if number + PREFETCH_PAIRS < len(pairs):
                futures.append(pool.submit(read, pairs[number + PREFETCH_PAIRS]))
            yield pair, content


def _read_pair(pair: Pair, read: Callable[[str], bytes]) -> _Content:
    assert pair.mask_files, "a record needs a mask"
    return read(pair.image), [read(uri) if uri else b"" for uri in pair.mask_files]


def _decode(
    pair: Pair,
    content: _Content,
    sources: tuple[str, str],
    size: tuple[int, int],
    classes: LabelClasses | None,
) -> Record:
    image, original = decode_frame(storage.basename(pair.image), content[0], size)
    masks = decode_masks(pair, content[1], original, size, classes)
    return Record(pair.id, image, masks, original, sources)


def _write_records(task: ShardTask, records: list[Record]) -> Shard | None:
    if not records:
        return None
    width, height = task.size
    prefix = shard_prefix(task.split, task.index, task.num_shards)
    return write_shard(task.out, prefix, records, height, width, task.num_classes)


def _compute_stats(task: ShardTask, records: list[Record]) -> pa.Table:
    schema = stats_schema(task.num_classes)
    if not records:
        return schema.empty_table()
    samples = Samples(
        [record.id for record in records],
        np.stack([record.image for record in records]),
        np.stack([record.mask for record in records]),
    )
    stats = image_stats.compute_stats(samples, [record.original_size for record in records])
    return stats.append_column(schema.field("split"), [[task.split] * len(records)])
