"""From an archive to records: shards by many workers, then what is said of all of them together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from segan import storage
from segan.data.archive.reader import Archive, Pair, check_rejects
from segan.data.profile import duplicates, report
from segan.data.profile.duplicates import DuplicatePair
from segan.data.profile.thumbnails import read_thumbnails
from segan.data.records.format import (
    MANIFEST,
    REJECTS,
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
from segan.data.records.shards import STATS_SCHEMA, ShardResult, ShardTask, write_task
from segan.errors import UsageError
from segan.utils import processes

FRAME_SIZE = (180, 135)  # width, height of the paper's frames, pixels
ROWS_PER_SHARD = 250
MAX_REJECTS = 0.05
IMAGE_STATS = "image_stats.parquet"
PROFILE = ("profile.json", "profile.html")
MAX_DUPLICATES = 100_000  # an archive with more has copies of one picture by the hundred
DUPLICATE_REASON = "near-duplicate"  # how the reason of a pair that is left out as one begins
_SPLIT_PRIORITY = {
    "train": 0,
    "validation": 1,
    "test": 2,
}  # of two twins, the one in the lesser split goes

Executor = Callable[[Sequence[ShardTask]], Iterator[ShardResult]]
OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class IngestOptions:
    """How records are made.

    Attributes:
        size: (width, height) of the frames, pixels.
        rows_per_shard: most pairs in a shard, about.
        max_rejects: share of the archive's pairs; more rejects stop the job.
        overwrite: remove the records that are there first.
        drop_duplicates: leave out of training what validation or test has too, and out of
            validation what test has.
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
    """Writes the records of an archive at `out`, or brings those that are there up to date.

    What an ingest before this one decoded and wrote, whole or stopped half-way, is taken over.
    The manifest changes last: until then whoever reads the records reads those of before.

    Args:
        spread: runs `write_task` on each task, in any order: `here` or a job on a cluster.
        advance: is told how many pairs more are done.

    Raises:
        UsageError: other records are at `out`.
        SeganError: too many rejects; the manifest is then as it was.
        StorageError: archive or records cannot be reached.
    """
    check_rejects(archive.rejects, archive.num_inputs, options.max_rejects, archive.uri)
    if options.overwrite:
        clear_output(out)
    check_output(out, archive.uri, options.size)
    results = _run_tasks(plan_shards(archive, out, options), executor, on_progress)
    duplicate_pairs = duplicates.find_duplicates(
        _concat_stats(results.values()), limit=MAX_DUPLICATES
    )
    if options.drop_duplicates and duplicate_pairs:
        results |= _run_tasks(
            _tasks_without_duplicates(duplicate_pairs, archive, out, options),
            executor,
            lambda pairs: None,
        )
    return _write_outputs(archive, out, options, list(results.values()), duplicate_pairs)


def local_executor(num_workers: int) -> Executor:
    """Tasks by processes of this machine: a third of an ingest holds the interpreter's lock."""
    return lambda tasks: processes.map_unordered(write_task, tasks, num_workers)


def check_output(out: str, source: str, size: tuple[int, int]) -> None:
    """Raises UsageError where records of another archive or size, or other things, are at `out`."""
    storage.check_access(out)
    if not storage.exists(storage.join(out, MANIFEST)):
        return
    existing = read_manifest(out)
    if (existing.width, existing.height) != size:
        raise UsageError(
            f"{out}: records of {existing.width} x {existing.height} pixels are here already, and "
            f"{size[0]} x {size[1]} are asked for; use another place, or --overwrite"
        )
    if existing.source != source:
        raise UsageError(
            f"{out}: records of {existing.source} are here already; use another place, or "
            f"--overwrite"
        )


def clear_output(out: str) -> None:
    """Removes the records at `out`, and nothing else that is there.

    Raises:
        StorageError: something is there that is no records, or it cannot be reached.
    """
    storage.check_access(out)
    if storage.exists(manifest := storage.join(out, MANIFEST)):
        read_manifest(out)  # of records, or it is not ours to remove
        # The manifest first: what is half removed must not look whole.
        storage.delete_file(manifest)
    _delete_shards(out, keep=())
    for name in (REJECTS, IMAGE_STATS, *PROFILE):
        if storage.exists(storage.join(out, name)):
            storage.delete_file(storage.join(out, name))


def plan_shards(
    archive: Archive,
    out: str,
    options: IngestOptions,
    excluded: Mapping[str, Mapping[str, str]] | None = None,
) -> list[ShardTask]:
    """Every pair of the archive in one task, the largest tasks first.

    A split's number of shards is a power of two, so that when it grows the rows of each shard come
    from one of the shards before.
    """
    if options.rows_per_shard < 1:
        raise UsageError(f"--rows-per-shard {options.rows_per_shard}: expected at least 1")
    files = [f for name in storage.list_files(out) if (f := parse_shard_name(name.name))]
    tasks = []
    for split in sorted({pair.split for pair in archive.pairs}):
        pairs = archive.split(split)
        num_shards = 1 << (-(-len(pairs) // options.rows_per_shard) - 1).bit_length()
        bins: list[list[Pair]] = [[] for _ in range(num_shards)]
        for pair in pairs:
            bins[shard_index(pair.id, num_shards)].append(pair)
        tasks += [
            ShardTask(
                out,
                split,
                index,
                num_shards,
                options.size,
                tuple(bins[index]),
                _candidate_shards(files, split, index, num_shards),
                (excluded or {}).get(split, {}),
            )
            for index in range(num_shards)
            if bins[index]
        ]
    return sorted(tasks, key=lambda task: -len(task.pairs))


def _candidate_shards(
    files: Sequence[ShardFile], split: str, index: int, num_shards: int
) -> tuple[ShardFile, ...]:
    """The shards that may hold rows of this one: by the hash of their ids, its own split first."""
    fits = [f for f in files if (f.index - index) % min(f.num_shards, num_shards) == 0]
    return tuple(sorted(fits, key=lambda f: (f.split != split, f.num_shards != num_shards, f.name)))


def _run_tasks(
    tasks: Sequence[ShardTask], executor: Executor, on_progress: OnProgress
) -> dict[tuple[str, int], ShardResult]:
    results = {}
    for result in executor(tasks):
        results[result.task.split, result.task.index] = result
        on_progress(len(result.task.pairs))
    assert len(results) == len(tasks), "every task ends, or its error ends the job"
    return results


def _tasks_without_duplicates(
    duplicate_pairs: Sequence[DuplicatePair], archive: Archive, out: str, options: IngestOptions
) -> list[ShardTask]:
    """Again the tasks of the shards that hold duplicates, now without these."""
    excluded: dict[str, dict[str, str]] = {}
    for duplicate in duplicate_pairs:
        keys = [(duplicate.split, duplicate.id), (duplicate.other_split, duplicate.other_id)]
        (split, gone), (other, kept) = sorted(keys, key=lambda one: _SPLIT_PRIORITY[one[0]])
        excluded.setdefault(split, {})[gone] = f"{DUPLICATE_REASON} of {kept} in {other}"
    tasks = plan_shards(archive, out, options, excluded)
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
        for row in (*archive.rejects, *(row for one in results for row in one.rejects))
    ]
    rejects.sort(key=lambda row: (row["split"], row["name"]))
    unreadable = [row for row in rejects if not row["reason"].startswith(DUPLICATE_REASON)]
    check_rejects(unreadable, archive.num_inputs, options.max_rejects, archive.uri)
    splits: dict[str, list[Shard]] = {}
    for one in sorted(results, key=lambda one: (one.task.split, one.task.index)):
        if one.shard:
            splits.setdefault(one.task.split, []).append(one.shard)
    width, height = options.size
    manifest = make_manifest((height, width, 1), splits, rejects, archive.uri)
    assert manifest.num_inputs == archive.num_inputs, (
        "every pair is in the records or among the rejects"
    )
    stats = _concat_stats(results)
    write_table(out, IMAGE_STATS, stats)
    _write_profile(out, manifest, stats, duplicate_pairs, rejects)
    write_manifest(out, manifest, rejects)
    _delete_shards(out, keep={shard.name for shards in splits.values() for shard in shards})
    return manifest


def _write_profile(
    out: str,
    manifest: Manifest,
    stats: pa.Table,
    duplicate_pairs: Sequence[DuplicatePair],
    rejects: Sequence[dict[str, str]],
) -> None:
    """The data's portrait, as figures and as a page."""
    examples = report.choose_examples(stats)
    thumbnails = read_thumbnails(out, manifest, report.keys_to_show(examples, duplicate_pairs))
    content, page = report.render_profile(
        manifest, stats, duplicate_pairs, rejects, examples, thumbnails
    )
    storage.write_json(storage.join(out, PROFILE[0]), content)
    storage.write_bytes(storage.join(out, PROFILE[1]), page.encode())


def _concat_stats(results: Iterable[ShardResult]) -> pa.Table:
    stats = pa.concat_tables([STATS_SCHEMA.empty_table(), *(one.stats for one in results)])
    return stats.sort_by([("split", "ascending"), ("id", "ascending")]).combine_chunks()


def _delete_shards(out: str, keep: Collection[str]) -> None:
    """Deletes shards that no manifest names, and what a killed ingest had half written."""
    for file in storage.list_files(out):
        is_shard = parse_shard_name(file.name) or storage.is_partial(file.name)
        if is_shard and file.name not in keep:
            storage.delete_file(storage.join(out, file.name))
