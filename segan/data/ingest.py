"""From an archive to records: shards by many workers, then what is said of all of them together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from segan import processes, storage
from segan.data import duplicates, portrait
from segan.data.archive import Archive, Pair, check_rejects
from segan.data.duplicates import Twins
from segan.data.pictures import read_pictures
from segan.data.records import (
    MANIFEST,
    REJECTS,
    Manifest,
    Shard,
    ShardFile,
    make_manifest,
    read_manifest,
    shard_file,
    shard_of,
    write_manifest,
    write_table,
)
from segan.data.shards import SCHEMA, ShardDone, ShardTask, write_task
from segan.errors import UsageError

FRAME = (180, 135)  # width, height of the paper's frames, pixels
ROWS_PER_SHARD = 250
MAX_REJECTS = 0.05
TRAITS = "traits.parquet"
PORTRAIT = ("portrait.json", "portrait.html")
MOST_DUPLICATES = 100_000  # an archive with more has copies of one picture by the hundred
DUPLICATE = "near-duplicate"  # how the reason of a pair that is left out as one begins
_RANK = {"train": 0, "validation": 1, "test": 2}  # of two twins, the one in the lesser split goes

Spread = Callable[[Sequence[ShardTask]], Iterator[ShardDone]]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Options:
    """How records are made.

    Attributes:
        size: (width, height) of the frames, pixels.
        rows_per_shard: most pairs in a shard, about.
        max_rejects: share of the archive's pairs; more rejects stop the job.
        overwrite: remove the records that are there first.
        drop_duplicates: leave out of training what validation or test has too, and out of
            validation what test has.
    """

    size: tuple[int, int] = FRAME
    rows_per_shard: int = ROWS_PER_SHARD
    max_rejects: float = MAX_REJECTS
    overwrite: bool = False
    drop_duplicates: bool = False


def ingest(
    archive: Archive,
    out: str,
    options: Options,
    spread: Spread,
    advance: Advance = lambda pairs: None,
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
    check_rejects(archive.rejects, archive.inputs, options.max_rejects, archive.uri)
    if options.overwrite:
        clear_place(out)
    check_place(out, archive.uri, options.size)
    done = _run(plan_shards(archive, out, options), spread, advance)
    found = duplicates.find(_traits(done.values()), most=MOST_DUPLICATES)
    if options.drop_duplicates and found:
        done |= _run(_without(found, archive, out, options), spread, lambda pairs: None)
    return _finish(archive, out, options, list(done.values()), found)


def here(workers: int) -> Spread:
    """Tasks by processes of this machine: a third of an ingest holds the interpreter's lock."""
    return lambda tasks: processes.spread(write_task, tasks, workers)


def check_place(out: str, source: str, size: tuple[int, int]) -> None:
    """Raises UsageError where records of another archive or size, or other things, are at `out`."""
    storage.check_access(out)
    if not storage.exists(storage.join(out, MANIFEST)):
        return
    there = read_manifest(out)
    if (there.width, there.height) != size:
        raise UsageError(
            f"{out}: records of {there.width} x {there.height} pixels are here already, and "
            f"{size[0]} x {size[1]} are asked for; use another place, or --overwrite"
        )
    if there.source != source:
        raise UsageError(
            f"{out}: records of {there.source} are here already; use another place, or --overwrite"
        )


def clear_place(out: str) -> None:
    """Removes the records at `out`, and nothing else that is there.

    Raises:
        StorageError: something is there that is no records, or it cannot be reached.
    """
    storage.check_access(out)
    if storage.exists(manifest := storage.join(out, MANIFEST)):
        read_manifest(out)  # of records, or it is not ours to remove
        # The manifest first: what is half removed must not look whole.
        storage.delete_file(manifest)
    _remove(out, keep=())
    for name in (REJECTS, TRAITS, *PORTRAIT):
        if storage.exists(storage.join(out, name)):
            storage.delete_file(storage.join(out, name))


def plan_shards(
    archive: Archive,
    out: str,
    options: Options,
    dropped: Mapping[str, Mapping[str, str]] | None = None,
) -> list[ShardTask]:
    """Every pair of the archive in one task, the largest tasks first.

    A split's number of shards is a power of two, so that when it grows the rows of each shard come
    from one of the shards before.
    """
    if options.rows_per_shard < 1:
        raise UsageError(f"--rows-per-shard {options.rows_per_shard}: expected at least 1")
    files = [f for name in storage.list_files(out) if (f := shard_file(name.name))]
    tasks = []
    for split in sorted({pair.split for pair in archive.pairs}):
        pairs = archive.split(split)
        shards = 1 << (-(-len(pairs) // options.rows_per_shard) - 1).bit_length()
        bins: list[list[Pair]] = [[] for _ in range(shards)]
        for pair in pairs:
            bins[shard_of(pair.id, shards)].append(pair)
        tasks += [
            ShardTask(
                out,
                split,
                index,
                shards,
                options.size,
                tuple(bins[index]),
                _likely(files, split, index, shards),
                (dropped or {}).get(split, {}),
            )
            for index in range(shards)
            if bins[index]
        ]
    return sorted(tasks, key=lambda task: -len(task.pairs))


def _likely(
    files: Sequence[ShardFile], split: str, index: int, shards: int
) -> tuple[ShardFile, ...]:
    """The shards that may hold rows of this one: by the hash of their ids, its own split first."""
    fits = [f for f in files if (f.index - index) % min(f.of, shards) == 0]
    return tuple(sorted(fits, key=lambda f: (f.split != split, f.of != shards, f.name)))


def _run(
    tasks: Sequence[ShardTask], spread: Spread, advance: Advance
) -> dict[tuple[str, int], ShardDone]:
    done = {}
    for one in spread(tasks):
        done[one.task.split, one.task.index] = one
        advance(len(one.task.pairs))
    assert len(done) == len(tasks), "every task ends, or its error ends the job"
    return done


def _without(
    found: Sequence[Twins], archive: Archive, out: str, options: Options
) -> list[ShardTask]:
    """Again the tasks of the shards that hold duplicates, now without these."""
    dropped: dict[str, dict[str, str]] = {}
    for twins in found:
        both = [(twins.split, twins.id), (twins.other_split, twins.other)]
        (split, gone), (other, kept) = sorted(both, key=lambda one: _RANK[one[0]])
        dropped.setdefault(split, {})[gone] = f"{DUPLICATE} of {kept} in {other}"
    again = plan_shards(archive, out, options, dropped)
    return [task for task in again if any(pair.id in task.dropped for pair in task.pairs)]


def _finish(
    archive: Archive,
    out: str,
    options: Options,
    done: Sequence[ShardDone],
    found: Sequence[Twins],
) -> Manifest:
    rejects = [
        {**row, "name": row["name"].removeprefix(f"{archive.uri}/")}
        for row in (*archive.rejects, *(row for one in done for row in one.rejects))
    ]
    rejects.sort(key=lambda row: (row["split"], row["name"]))
    bad = [row for row in rejects if not row["reason"].startswith(DUPLICATE)]
    check_rejects(bad, archive.inputs, options.max_rejects, archive.uri)
    splits: dict[str, list[Shard]] = {}
    for one in sorted(done, key=lambda one: (one.task.split, one.task.index)):
        if one.shard:
            splits.setdefault(one.task.split, []).append(one.shard)
    width, height = options.size
    manifest = make_manifest((height, width, 1), splits, rejects, archive.uri)
    assert manifest.inputs == archive.inputs, "every pair is in the records or among the rejects"
    traits = _traits(done)
    write_table(out, TRAITS, traits)
    _paint(out, manifest, traits, found, rejects)
    write_manifest(out, manifest, rejects)
    _remove(out, keep={shard.name for shards in splits.values() for shard in shards})
    return manifest


def _paint(
    out: str,
    manifest: Manifest,
    traits: pa.Table,
    found: Sequence[Twins],
    rejects: Sequence[dict[str, str]],
) -> None:
    """The data's portrait, as figures and as a page."""
    examples = portrait.choose_examples(traits)
    pictures = read_pictures(out, manifest, portrait.pictured(examples, found))
    figures, page = portrait.draw(manifest, traits, found, rejects, examples, pictures)
    storage.write_json(storage.join(out, PORTRAIT[0]), figures)
    storage.write_bytes(storage.join(out, PORTRAIT[1]), page.encode())


def _traits(done: Iterable[ShardDone]) -> pa.Table:
    whole = pa.concat_tables([SCHEMA.empty_table(), *(one.traits for one in done)])
    return whole.sort_by([("split", "ascending"), ("id", "ascending")]).combine_chunks()


def _remove(out: str, keep: Collection[str]) -> None:
    """Deletes shards that no manifest names, and what a killed ingest had half written."""
    for file in storage.list_files(out):
        ours = shard_file(file.name) or storage.is_partial(file.name)
        if ours and file.name not in keep:
            storage.delete_file(storage.join(out, file.name))
