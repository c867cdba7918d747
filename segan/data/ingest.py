"""From an archive to records, a shard at a time: the work that a job spreads over its workers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from segan import storage
from segan.data.archive import Archive, Pair, RejectedError, check_rejects, read_record
from segan.data.records import (
    MANIFEST,
    Manifest,
    Shard,
    read_manifest,
    shard_name,
    shard_of,
    write_manifest,
    write_shard,
)
from segan.errors import UsageError

FRAME = (180, 135)  # width, height of the paper's frames, pixels
ROWS_PER_SHARD = 250
MAX_REJECTS = 0.05


@dataclass(frozen=True)
class ShardTask:
    """A shard to write: its name and the pairs that fall into it."""

    split: str
    name: str
    pairs: tuple[Pair, ...]


def plan_shards(archive: Archive, rows_per_shard: int = ROWS_PER_SHARD) -> list[ShardTask]:
    """Every pair of the archive in one task; small splits get one shard."""
    if rows_per_shard < 1:
        raise UsageError(f"--rows-per-shard {rows_per_shard}: expected at least 1")
    tasks = []
    for split in sorted({pair.split for pair in archive.pairs}):
        pairs = archive.split(split)
        shards = math.ceil(len(pairs) / rows_per_shard)
        bins: list[list[Pair]] = [[] for _ in range(shards)]
        for pair in pairs:
            bins[shard_of(pair.id, shards)].append(pair)
        names = (shard_name(split, index, shards) for index in range(shards))
        tasks += [ShardTask(split, n, tuple(b)) for n, b in zip(names, bins, strict=True) if b]
    return tasks


def clear_place(out: str, overwrite: bool) -> None:
    """Makes sure that records can be written at `out`.

    Raises:
        UsageError: whole records are there and may not be replaced.
        StorageError: it cannot be reached.
    """
    storage.check_access(out)
    manifest = storage.join(out, MANIFEST)
    if not storage.exists(manifest):
        return
    if not overwrite:
        raise UsageError(f"{out}: records are here already; use --overwrite or another place")
    read_manifest(out)  # of records, or it is not ours to replace
    # The manifest first: what is half replaced must not look whole.
    storage.delete_file(manifest)
    for name in storage.iter_names(out, ".parquet"):
        if "/" not in name:
            storage.delete_file(storage.join(out, name))


def write_task(task: ShardTask, out: str, size: tuple[int, int]) -> dict[str, Any]:
    """Reads the pairs of a task and writes their shard.

    Args:
        size: (width, height) in pixels of the frames.

    Returns:
        `split`, `shard` (None where every pair was rejected) and `rejects`, as plain values.
    """
    records, rejects = [], []
    for pair in task.pairs:
        try:
            records.append(read_record(pair, size))
        except RejectedError as error:
            name = pair.image.rsplit("/", 1)[-1]
            rejects.append({"name": name, "split": task.split, "reason": str(error)})
    width, height = size
    shard = write_shard(out, task.name, records, height, width, 1) if records else None
    return {
        "split": task.split,
        "shard": shard.model_dump() if shard else None,
        "rejects": rejects,
        "pairs": len(task.pairs),
    }


def finish(
    archive: Archive,
    out: str,
    results: Iterable[dict[str, Any]],
    size: tuple[int, int],
    max_rejects: float = MAX_REJECTS,
) -> Manifest:
    """Writes rejects and manifest; the records are whole after it.

    Args:
        results: what `write_task` gave for each task, in any order.
        max_rejects: share of the archive's pairs; more rejects stop the job.

    Raises:
        SeganError: too many rejects; no manifest is written then.
    """
    done = list(results)
    rejects: Sequence[dict[str, str]] = archive.rejects + [
        r for one in done for r in one["rejects"]
    ]
    check_rejects(rejects, len(archive.pairs) + len(archive.rejects), max_rejects, archive.uri)
    splits: dict[str, Sequence[Shard]] = {}
    for one in sorted((o for o in done if o["shard"]), key=lambda o: str(o["shard"]["name"])):
        splits[one["split"]] = [*splits.get(one["split"], ()), Shard(**one["shard"])]
    width, height = size
    return write_manifest(out, (height, width, 1), splits, rejects, archive.uri)
