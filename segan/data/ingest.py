"""Ingest: converts an archive to records, one shard per task, and profiles them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from segan import storage
from segan.data.archive.reader import Archive, Pair, check_rejects
from segan.data.profile import duplicates, report
from segan.data.profile.duplicates import CompareTask, DuplicatePair, compare_hashes
from segan.data.profile.thumbnails import read_thumbnails
from segan.data.records.format import (
    MANIFEST,
    Manifest,
    Shard,
    ShardFile,
    make_manifest,
    parse_shard_name,
    read_manifest,
    shard_index,
    write_manifest,
    write_table,
)
from segan.data.records.shards import ShardResult, ShardTask, stats_schema, write_task
from segan.data.records.versions import EARLIER_MANIFESTS, earlier_versions, keep_version
from segan.errors import StorageError, UsageError
from segan.storage.lease import current_fence, hold_lease
from segan.utils import processes

FRAME_SIZE = (180, 135)  # width, height of the paper's frames in pixels
ROWS_PER_SHARD = 250
MAX_REJECTS = 0.05
IMAGE_STATS = "image_stats.parquet"
PROFILE = ("profile.json", "profile.html")
MAX_DUPLICATES = 100_000
DUPLICATE_REASON = "near-duplicate"  # prefix of a reject's reason
_SPLIT_PRIORITY = {"train": 0, "validation": 1, "test": 2}  # a duplicate is dropped from the lower

Task = ShardTask | CompareTask
Executor = Callable[[Sequence[Task]], Iterator[Any]]
OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class IngestOptions:
    """Options of an ingest.

    Attributes:
        size: (width, height) of the frames in pixels.
        rows_per_shard: approximate maximum of pairs in a shard.
        max_rejects: fraction of the archive's pairs; more rejects fail the ingest.
        overwrite: replaces existing records, whatever they are of, and reuses none of them; their
            earlier versions are deleted too.
        drop_duplicates: rejects near-duplicates of validation and test images from training, and
            those of test images from validation.
    """

    size: tuple[int, int] = FRAME_SIZE
    rows_per_shard: int = ROWS_PER_SHARD
    max_rejects: float = MAX_REJECTS
    overwrite: bool = False
    drop_duplicates: bool = False


def ingest(
    archive: Archive,
    out: str,
    options: IngestOptions,
    executor: Executor,
    on_progress: OnProgress = lambda pairs: None,
) -> Manifest:
    """Writes the records of an archive at `out`, or updates existing ones.

    Pairs that an earlier ingest wrote, even an interrupted one, are not decoded again. The manifest
    is replaced last: until then readers get the previous records.

    Args:
        executor: runs `run_task` on each task in any order, see `local_executor`.
        on_progress: called with the number of pairs of each completed task.

    Raises:
        UsageError: records of another archive, frame size or other classes are at `out`, or
            another process writes there.
        SeganError: too many rejects; the existing manifest is kept.
        StorageError: the archive or the records cannot be read or written.
    """
    check_rejects(archive.rejects, archive.num_inputs, options.max_rejects, archive.uri)
    with hold_lease(out):
        return _ingest(archive, out, options, executor, on_progress)


def _ingest(
    archive: Archive, out: str, options: IngestOptions, executor: Executor, on_progress: OnProgress
) -> Manifest:
    if options.overwrite:
        check_overwrite(out)
    else:
        check_output(out, archive.uri, options.size, archive.class_names)
    results = _run_tasks(plan_shards(archive, out, options), executor, on_progress)
    duplicate_pairs = _find_duplicates(_concat_stats(archive, results.values()), executor)
    if options.drop_duplicates and duplicate_pairs:
        results |= _run_tasks(
            _tasks_without_duplicates(duplicate_pairs, archive, out, options, results.values()),
            executor,
            lambda pairs: None,
        )
    return _write_outputs(archive, out, options, list(results.values()), duplicate_pairs)


def local_executor(num_workers: int) -> Executor:
    """Runs tasks in processes on this machine, because part of the work holds the GIL."""
    return lambda tasks: processes.map_unordered(run_task, tasks, num_workers)


def run_task(task: Task) -> Any:
    """Writes a shard, or compares images; returns what the task's function does."""
    return write_task(task) if isinstance(task, ShardTask) else compare_hashes(task)


def check_output(
    out: str, source: str, size: tuple[int, int], class_names: tuple[str, ...] = ()
) -> None:
    """Checks that an ingest can write or update records at `out`.

    Raises:
        UsageError: records of another archive, frame size or other classes are there.
        StorageError: the manifest there cannot be read.
    """
    storage.check_access(out)
    if not storage.exists(manifest := storage.join(out, MANIFEST)):
        return
    if not _is_json(manifest):
        raise StorageError(f"{manifest}: not JSON, perhaps cut off; --overwrite replaces it")
    existing = read_manifest(out)
    if (existing.width, existing.height) != size:
        raise UsageError(
            f"{out}: existing records have {existing.width} x {existing.height} pixels, expected "
            f"{size[0]} x {size[1]}; use another place or --overwrite"
        )
    if existing.class_names != class_names:
        found, expected = (
            ", ".join(names) or "lesion" for names in (existing.class_names, class_names)
        )
        raise UsageError(
            f"{out}: existing records have the classes {found}, expected {expected}; use another "
            "place or --overwrite"
        )
    if existing.source != source:
        raise UsageError(
            f"{out}: existing records are of {existing.source}, expected {source}; use another "
            "place or --overwrite"
        )


def check_overwrite(out: str) -> None:
    """Checks that an ingest may replace what is at `out`: records, or a manifest that is torn.

    Raises:
        StorageError: the manifest at `out` is not of records, or storage cannot be reached.
    """
    storage.check_access(out)
    manifest = storage.join(out, MANIFEST)
    if storage.exists(manifest) and _is_json(manifest):
        read_manifest(out)  # raises if it is another manifest, which must be kept


def _is_json(uri: str) -> bool:
    try:
        json.loads(storage.read_bytes(uri))
    except (ValueError, RecursionError):
        return False
    return True


def plan_shards(
    archive: Archive,
    out: str,
    options: IngestOptions,
    excluded: Mapping[str, Mapping[str, str]] | None = None,
    written: Collection[str] = (),
) -> list[ShardTask]:
    """Assigns every pair of the archive to a task; the largest tasks come first.

    A split's number of shards is a power of two: when it doubles, each shard splits into two.

    Args:
        excluded: reason by id of the pairs to reject, by split.
        written: names of the shards that this ingest has written already.
    """
    if options.rows_per_shard < 1:
        raise UsageError(f"--rows-per-shard {options.rows_per_shard}: expected at least 1")
    existing = [
        shard
        for file in storage.list_files(out)
        if (shard := parse_shard_name(file.name))
        and (file.name in written or not options.overwrite)
    ]
    tasks = []
    for split in sorted({pair.split for pair in archive.pairs}):
        pairs = archive.split(split)
        num_shards = count_shards(len(pairs), options.rows_per_shard)
        bins: list[list[Pair]] = [[] for _ in range(num_shards)]
        for pair in pairs:
            bins[shard_index(pair.id, num_shards)].append(pair)
        groups = _group_by_index(existing, num_shards)
        tasks += [
            ShardTask(
                out,
                split,
                index,
                num_shards,
                options.size,
                tuple(bins[index]),
                _candidate_shards(groups, split, index, num_shards),
                (excluded or {}).get(split, {}),
                archive.classes,
            )
            for index in range(num_shards)
            if bins[index]
        ]
    return sorted(tasks, key=lambda task: -len(task.pairs))


def count_shards(pairs: int, rows_per_shard: int) -> int:
    """The number of shards of a split, a power of two."""
    return 1 << (-(-pairs // rows_per_shard) - 1).bit_length()


def _group_by_index(
    files: Sequence[ShardFile], num_shards: int
) -> dict[int, dict[int, list[ShardFile]]]:
    """Existing shards by what their and our numbers of shards have in common, and by index."""
    groups: dict[int, dict[int, list[ShardFile]]] = {}
    for file in files:
        common = min(file.num_shards, num_shards)
        groups.setdefault(common, {}).setdefault(file.index % common, []).append(file)
    return groups


def _candidate_shards(
    groups: Mapping[int, Mapping[int, Sequence[ShardFile]]],
    split: str,
    index: int,
    num_shards: int,
) -> tuple[ShardFile, ...]:
    """The existing shards that can contain samples of this shard, those of its split first.

    Args:
        groups: of `_group_by_index`.
    """
    matching = [f for common, group in groups.items() for f in group.get(index % common, ())]
    matching.sort(key=lambda f: (f.split != split, f.num_shards != num_shards, f.name))
    return tuple(matching)


def _run_tasks(
    tasks: Sequence[ShardTask], executor: Executor, on_progress: OnProgress
) -> dict[tuple[str, int], ShardResult]:
    results = {}
    for result in executor(tasks):
        results[result.task.split, result.task.index] = result
        on_progress(len(result.task.pairs))
    assert len(results) == len(tasks), "an executor returns a result for each task or raises"
    return results


def _find_duplicates(stats: pa.Table, executor: Executor) -> list[DuplicatePair]:
    if stats.num_rows <= duplicates.TASK_SIZE[0]:  # a matter of seconds
        return duplicates.find_duplicates(stats, limit=MAX_DUPLICATES)
    return duplicates.find_duplicates(stats, limit=MAX_DUPLICATES, run=executor)


def _tasks_without_duplicates(
    duplicate_pairs: Sequence[DuplicatePair],
    archive: Archive,
    out: str,
    options: IngestOptions,
    results: Iterable[ShardResult],
) -> list[ShardTask]:
    """The tasks of the shards that contain duplicates, with the duplicates excluded."""
    excluded: dict[str, dict[str, str]] = {}
    for pair in duplicate_pairs:
        keys = [(pair.split, pair.id), (pair.other_split, pair.other_id)]
        (split, dropped), (other, kept) = sorted(keys, key=lambda key: _SPLIT_PRIORITY[key[0]])
        excluded.setdefault(split, {})[dropped] = f"{DUPLICATE_REASON} of {kept} in {other}"
    written = {result.shard.name for result in results if result.shard}
    tasks = plan_shards(archive, out, options, excluded, written)
    return [task for task in tasks if any(pair.id in task.excluded for pair in task.pairs)]


def _write_outputs(
    archive: Archive,
    out: str,
    options: IngestOptions,
    results: Sequence[ShardResult],
    duplicate_pairs: Sequence[DuplicatePair],
) -> Manifest:
    rejects = [
        {**row, "name": row["name"].removeprefix(f"{archive.uri}/")}
        for row in (*archive.rejects, *(row for result in results for row in result.rejects))
    ]
    rejects.sort(key=lambda row: (row["split"], row["name"]))
    unreadable = [row for row in rejects if not row["reason"].startswith(DUPLICATE_REASON)]
    check_rejects(unreadable, archive.num_inputs, options.max_rejects, archive.uri)
    splits: dict[str, list[Shard]] = {}
    for result in sorted(results, key=lambda result: (result.task.split, result.task.index)):
        if result.shard:
            splits.setdefault(result.task.split, []).append(result.shard)
    width, height = options.size
    names = archive.class_names
    geometry = (height, width, len(names) or 1)
    manifest = make_manifest(geometry, splits, rejects, archive.uri, names)
    assert manifest.num_inputs == archive.num_inputs, "each pair is a record or a reject"
    stats = _concat_stats(archive, results)
    current_fence(out)()
    write_table(out, IMAGE_STATS, stats)
    _write_profile(out, manifest, stats, duplicate_pairs, rejects)
    if not options.overwrite:
        keep_version(out, manifest)
    write_manifest(out, manifest, rejects)
    if options.overwrite:
        storage.delete_folder(storage.join(out, EARLIER_MANIFESTS))
    versions = [manifest, *earlier_versions(out)]
    _delete_shards(out, keep={shard.name for version in versions for shard in version.all_shards})
    return manifest


def _write_profile(
    out: str,
    manifest: Manifest,
    stats: pa.Table,
    duplicate_pairs: Sequence[DuplicatePair],
    rejects: Sequence[dict[str, str]],
) -> None:
    """Writes profile.json and profile.html."""
    profile = report.build_profile(manifest, stats, duplicate_pairs, rejects)
    thumbnails = read_thumbnails(out, manifest, report.keys_to_show(profile))
    page = report.render_profile(profile, thumbnails)
    storage.write_json(storage.join(out, PROFILE[0]), profile.to_json())
    storage.write_bytes(storage.join(out, PROFILE[1]), page.encode())


def _concat_stats(archive: Archive, results: Iterable[ShardResult]) -> pa.Table:
    schema = stats_schema(len(archive.class_names) or 1)
    stats = pa.concat_tables([schema.empty_table(), *(result.stats for result in results)])
    return stats.sort_by([("split", "ascending"), ("id", "ascending")]).combine_chunks()


def _delete_shards(out: str, keep: Collection[str]) -> None:
    """Deletes all shards but those in `keep`, and partial files of a killed ingest."""
    for file in storage.list_files(out):
        is_shard = parse_shard_name(file.name) or storage.is_partial(file.name)
        if is_shard and file.name not in keep:
            storage.delete_file(storage.join(out, file.name))
