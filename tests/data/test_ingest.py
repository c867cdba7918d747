"""Ingest: every pair becomes a record or a reject with a reason."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segan import storage
from segan.data.archive.folds import k_fold_split
from segan.data.archive.reader import Archive, Pair, open_archive
from segan.data.ingest import IngestOptions, Task, local_executor, plan_shards
from segan.data.ingest import ingest as write_records
from segan.data.profile import duplicates
from segan.data.profile.duplicates import CompareTask
from segan.data.records.format import (
    MANIFEST,
    Manifest,
    parse_shard_name,
    read_manifest,
    read_rejects,
    read_shard,
    shard_index,
    to_samples,
)
from segan.data.records.shards import ShardResult, ShardTask, read_record
from segan.data.records.versions import read_version
from segan.data.synthetic import generate_archive
from segan.errors import LeaseLostError, SeganError, UsageError
from segan.storage.lease import LEASE_FILE
from tests.drivers import Driver

FRAME_SIZE = (20, 16)
COUNTS = {"train": 5, "validation": 2, "test": 2}
DAMAGED_ID = "ISIC_0000002"  # of train


def generate(folder: str) -> None:
    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(folder, name), content)

    generate_archive(COUNTS, 0, write, 32)


def ingest(source: str, out: str, max_rejects: float = 1.0, rows_per_shard: int = 250) -> Manifest:
    return write_records(
        open_archive(source),
        out,
        IngestOptions(FRAME_SIZE, rows_per_shard, max_rejects),
        local_executor(1),
    )


def damaged_files(source: Path) -> tuple[Path, Path]:
    """Image and mask file of the pair to damage."""
    return (
        source / "ISIC-2017_Training_Data" / f"{DAMAGED_ID}.jpg",
        source / "ISIC-2017_Training_Part1_GroundTruth" / f"{DAMAGED_ID}_segmentation.png",
    )


def read_ids(out: str, split: str) -> set[str]:
    manifest = read_manifest(out)
    tables = [read_shard(out, shard) for shard in manifest.shards(split)]
    return {name for table in tables for name in table["id"].to_pylist()}


@pytest.fixture(scope="module")
def synthetic_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    generate(str(folder))
    return folder


@pytest.fixture
def source(synthetic_archive: Path, tmp_path: Path) -> Path:
    """An archive to damage."""
    return Path(shutil.copytree(synthetic_archive, tmp_path / "source"))


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "records")


# One bad pair

Damage = Callable[[Path, Path], Any]


def save_mask_as(mode: str, value: Any = 0) -> Damage:
    """Replaces the mask with a uniform one of the same size."""

    def damage(image: Path, mask: Path) -> None:
        Image.new(mode, Image.open(image).size, value).save(mask)

    return damage


def smudge(image: Path, mask: Path) -> None:
    pixels = np.array(Image.open(mask))
    pixels[0, :3] = (1, 128, 254)
    Image.fromarray(pixels).save(mask)


def truncate(image: Path, mask: Path) -> None:
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no mask": (lambda image, mask: mask.unlink(), "no mask; expected {mask}"),
    "no image": (lambda image, mask: image.unlink(), "no image; expected {image}"),
    "mask of another size": (
        lambda image, mask: Image.new("L", (7, 5)).save(mask),
        "{mask}: expected the image's {width} x {height} pixels, found 7 x 5",
    ),
    "mask with values between": (
        smudge,
        "{mask}: expected only 0 and 255, found 3 pixels of other values (1, 128, 254)",
    ),
    "mask of 0 and 1": (
        save_mask_as("L", 1),
        "{mask}: expected only 0 and 255, found {area} pixels of other values (1)",
    ),
    "mask in colour": (
        save_mask_as("RGB"),
        "{mask}: expected a mask with one 8-bit channel, found RGB",
    ),
    "mask that is none": (
        lambda image, mask: mask.write_text("a mask"),
        "{mask}: expected an image, found 6 bytes of another format",
    ),
    "image that is none": (
        lambda image, mask: image.write_text("an image"),
        "{image}: expected an image, found 8 bytes of another format",
    ),
    "half an image": (truncate, "{image}: damaged image (image file is truncated"),
    "empty image": (
        lambda image, mask: image.write_bytes(b""),
        "{image}: expected an image, found an empty file",
    ),
    "empty mask": (
        lambda image, mask: mask.write_bytes(b""),
        "{mask}: expected an image, found an empty file",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES.keys())
def test_rejects_a_bad_pair_and_keeps_the_others(
    source: Path, out: str, damage: Damage, reason: str
) -> None:
    image, mask = damaged_files(source)
    width, height = Image.open(image).size
    expected = reason.format(
        image=image.name, mask=mask.name, width=width, height=height, area=width * height
    )
    damage(image, mask)
    manifest = ingest(str(source), out)
    (reject,) = read_rejects(out)
    assert DAMAGED_ID in reject["name"]
    assert reject["split"] == "train"
    assert reject["reason"].startswith(expected)
    assert manifest.num_rejects == 1
    assert sum(manifest.num_rows(split) for split in COUNTS) + 1 == sum(COUNTS.values())
    assert read_ids(out, "train") == {f"ISIC_000000{i}" for i in (0, 1, 3, 4)}
    assert read_ids(out, "validation") == {"ISIC_0000005", "ISIC_0000006"}


def test_no_shard_without_records(source: Path, out: str) -> None:
    for mask in (source / "ISIC-2017_Validation_Part1_GroundTruth").iterdir():
        mask.write_bytes(b"")
    manifest = ingest(str(source), out)
    assert manifest.num_rejects == COUNTS["validation"]
    assert list(manifest.splits) == ["test", "train"]
    assert len(list(Path(out).glob("*-of-*.parquet"))) == 2


def test_too_many_rejects(source: Path, out: str) -> None:
    truncate(*damaged_files(source))
    with pytest.raises(SeganError, match="1 of 9 pairs rejected") as caught:
        ingest(str(source), out, max_rejects=0.1)
    assert f"{DAMAGED_ID}.jpg: damaged image" in str(caught.value)
    assert not storage.exists(f"{out}/{MANIFEST}")
    assert ingest(str(source), out, max_rejects=1 / 9).num_rejects == 1


def test_pairs_without_a_partner_count_as_rejects(source: Path, out: str) -> None:
    damaged_files(source)[0].unlink()
    with pytest.raises(SeganError, match="1 of 9 pairs rejected"):
        ingest(str(source), out, max_rejects=0.1)


# Content of the records


def test_records_equal_the_archive(synthetic_archive: Path, out: str) -> None:
    manifest = ingest(str(synthetic_archive), out)
    archive = open_archive(str(synthetic_archive))
    assert (manifest.width, manifest.height, manifest.classes) == (*FRAME_SIZE, 1)
    assert {split: manifest.num_rows(split) for split in manifest.splits} == COUNTS
    for split in COUNTS:
        (shard,) = manifest.shards(split)
        table = read_shard(out, shard)
        frames = to_samples(table, manifest)
        pairs = {pair.id: pair for pair in archive.split(split)}
        assert set(frames.ids) == set(pairs)
        for row, name in enumerate(frames.ids):
            record = read_record(pairs[name], FRAME_SIZE)
            np.testing.assert_array_equal(frames.image[row], record.image)
            np.testing.assert_array_equal(frames.mask[row], record.mask)
            assert record.original_size == (
                table["original_width"][row].as_py(),
                table["original_height"][row].as_py(),
            )


def test_order_of_results_does_not_matter(synthetic_archive: Path, out: str) -> None:
    def backwards(tasks: Sequence[ShardTask]) -> Iterator[ShardResult]:
        return local_executor(1)(tasks[::-1])

    archive, options = (
        open_archive(str(synthetic_archive)),
        IngestOptions(FRAME_SIZE, rows_per_shard=2),
    )
    first = write_records(archive, out, options, local_executor(1))
    assert write_records(archive, f"{out}-2", options, backwards) == first
    assert write_records(archive, f"{out}-3", options, local_executor(3)) == first
    assert len(first.shards("train")) > 1


def test_ingest_is_deterministic(synthetic_archive: Path, out: str) -> None:
    first = ingest(str(synthetic_archive), out, rows_per_shard=2)
    assert ingest(str(synthetic_archive), out + "-again", rows_per_shard=2) == first


def test_fingerprint_depends_on_pixels(source: Path, out: str) -> None:
    before = ingest(str(source), out).fingerprint
    save_mask_as("L", 255)(*damaged_files(source))
    assert ingest(str(source), out).fingerprint != before


@pytest.mark.integration
def test_records_in_a_bucket(synthetic_archive: Path, out: str, bucket: str) -> None:
    generate(f"{bucket}/archive")
    there = ingest(f"{bucket}/archive", f"{bucket}/records", rows_per_shard=2)
    here = ingest(str(synthetic_archive), out, rows_per_shard=2)
    assert there.fingerprint == here.fingerprint
    assert there.splits == here.splits
    assert read_manifest(f"{bucket}/records") == there
    counting, overwritten = ingest_again(
        f"{bucket}/archive", f"{bucket}/records", rows_per_shard=2, overwrite=True
    )
    assert (counting.num_decoded, overwritten.fingerprint) == (9, there.fingerprint)
    names = {f.name for f in storage.list_files(f"{bucket}/records") if "-of-" in f.name}
    assert names == {s.name for shards in overwritten.splits.values() for s in shards}


# Shards


def make_archive(numbers: dict[str, int]) -> Archive:
    pairs = [
        Pair(f"{split}-{i}", split, f"/a/{i}.jpg", f"/a/{i}.png")
        for split, number in numbers.items()
        for i in range(number)
    ]
    return Archive("/a", pairs)


@given(
    st.dictionaries(st.sampled_from(["train", "validation", "test"]), st.integers(0, 60)),
    st.integers(1, 20),
)
def test_every_pair_is_in_the_one_task_of_its_shard(
    numbers: dict[str, int], rows_per_shard: int
) -> None:
    archive = make_archive(numbers)
    tasks = plan_shards(archive, "/no/records", IngestOptions(FRAME_SIZE, rows_per_shard))
    planned = [pair for task in tasks for pair in task.pairs]
    assert sorted(planned, key=repr) == sorted(archive.pairs, key=repr)
    assert len({(task.split, task.index) for task in tasks}) == len(tasks)
    for task in tasks:
        least = -(-numbers[task.split] // rows_per_shard)
        assert task.num_shards in (1, 2, 4, 8, 16, 32, 64)
        assert least <= task.num_shards < 2 * least
        assert {shard_index(pair.id, task.num_shards) for pair in task.pairs} == {task.index}
        assert {pair.split for pair in task.pairs} == {task.split}


def test_rows_per_shard_must_be_positive() -> None:
    with pytest.raises(UsageError, match="--rows-per-shard 0: expected at least 1"):
        plan_shards(make_archive({"train": 1}), "/no/records", IngestOptions(FRAME_SIZE, 0))


# Existing records


def test_records_of_another_archive_or_size_are_not_replaced(
    synthetic_archive: Path, source: Path, out: str
) -> None:
    before = ingest(str(synthetic_archive), out)
    with pytest.raises(
        UsageError, match=f"{out}: existing records are of {synthetic_archive}, .* --overwrite"
    ):
        ingest(str(source), out)
    with pytest.raises(UsageError, match="records have 20 x 16 pixels, expected 40 x 30"):
        write_records(
            open_archive(str(synthetic_archive)), out, IngestOptions((40, 30)), local_executor(1)
        )
    assert read_manifest(out) == before
    assert read_ids(out, "train") == {f"ISIC_000000{i}" for i in range(5)}


def overwrite(source: Path | str, out: str) -> tuple["CountingExecutor", Manifest]:
    return ingest_again(source, out, overwrite=True)


def test_overwriting_decodes_everything_and_keeps_other_files(
    synthetic_archive: Path, source: Path, out: str
) -> None:
    ingest(str(synthetic_archive), out, rows_per_shard=2)
    storage.write_bytes(f"{out}/README.md", b"mine")
    below = ingest(str(synthetic_archive), f"{out}/below")
    counting, manifest = overwrite(source, out)
    assert counting.num_decoded == 9
    assert manifest.source == str(source)
    assert read_manifest(f"{out}/below") == below
    assert read_ids(f"{out}/below", "train") == {f"ISIC_000000{i}" for i in range(5)}
    left = {name for name in read_files(out) if not name.startswith("below/")}
    fresh = f"{out}-fresh"
    ingest(str(source), fresh)
    assert left == {*read_files(fresh), "README.md"}


def test_overwriting_keeps_the_old_records_until_the_new_ones_are_complete(
    synthetic_archive: Path, source: Path, out: str
) -> None:
    before, files = ingest(str(synthetic_archive), out), read_files(out)

    def fail(tasks: Sequence[ShardTask]) -> Iterator[ShardResult]:
        yield from local_executor(1)(tasks[:1])
        raise OSError("a power cut")

    with pytest.raises(OSError, match="a power cut"):
        write_records(
            open_archive(str(source)), out, IngestOptions(FRAME_SIZE, overwrite=True), fail
        )
    assert read_manifest(out) == before
    assert files.items() <= read_files(out).items()


def test_duplicates_are_dropped_without_decoding_twice(source: Path, out: str) -> None:
    """`--overwrite` reuses what it has itself written, and nothing else."""
    images, masks = (file.parent for file in damaged_files(source))
    for test in source.glob("*Test*/ISIC_*"):  # train gets a copy of each test image
        folder = images if test.suffix == ".jpg" else masks
        shutil.copy(test, folder / f"ISIC_99{test.name[7:]}")
    ingest(str(source), out)
    counting, manifest = ingest_again(source, out, overwrite=True, drop_duplicates=True)
    assert manifest.num_rejects == 2
    assert counting.num_decoded == 11


@pytest.mark.parametrize(
    "content", [b"", bytes(700), b'{"height": 16, "wid', b"\xff\xfe", b"[" * 100_000]
)
def test_overwriting_repairs_a_torn_manifest(source: Path, out: str, content: bytes) -> None:
    """As a power cut leaves it."""
    before = ingest(str(source), out)
    storage.write_bytes(f"{out}/{MANIFEST}", content)
    with pytest.raises(SeganError, match=r"manifest\.json: not JSON.* --overwrite replaces it"):
        ingest(str(source), out)
    assert overwrite(source, out)[1] == before == read_manifest(out)


def test_overwriting_refuses_another_manifest(source: Path, out: str) -> None:
    """A checkpoint's manifest has the same file name."""
    storage.write_json(f"{out}/{MANIFEST}", {"files": {}, "info": {}})
    with pytest.raises(SeganError, match=f"{out}"):
        overwrite(source, out)
    assert [file.name for file in storage.list_files(out)] == [MANIFEST]


# Updating records


class CountingExecutor:
    """A local executor that counts decoded pairs."""

    def __init__(self) -> None:
        self.num_decoded = 0

    def __call__(self, tasks: Sequence[ShardTask]) -> Iterator[ShardResult]:
        for result in local_executor(1)(tasks):
            self.num_decoded += result.num_decoded
            yield result


def ingest_again(
    source: Path | str, out: str, rows_per_shard: int = 250, **options: Any
) -> tuple[CountingExecutor, Manifest]:
    """Ingests with a counting executor; returns it and the manifest."""
    counting = CountingExecutor()
    how = IngestOptions(FRAME_SIZE, rows_per_shard, 1.0, **options)
    return counting, write_records(open_archive(str(source)), out, how, counting)


def read_files(out: str) -> dict[str, bytes]:
    return {f.name: storage.read_bytes(f"{out}/{f.name}") for f in storage.list_files(out)}


def read_newest_files(out: str) -> dict[str, bytes]:
    """The files of the records without those of their earlier versions."""
    newest = {shard.name for shard in read_manifest(out).all_shards}
    return {
        name: content
        for name, content in read_files(out).items()
        if name in newest or not (parse_shard_name(name) or name.startswith("manifests/"))
    }


def rename(source: Path, old: str, new: str) -> None:
    for path in list(source.rglob(f"{old}*")):
        path.rename(path.with_name(path.name.replace(old, new)))


def add_pairs(source: Path, count: int, seed: int = 1) -> None:
    """Adds training pairs from ISIC_0000100."""

    def write(name: str, content: bytes) -> None:
        new = name.replace("ISIC_00000", "ISIC_00001")
        storage.write_bytes(storage.join(str(source), new), content)

    generate_archive({"train": count}, seed, write, 32)


@pytest.mark.parametrize("rows", [250, 2])
def test_unchanged_archive_decodes_nothing(source: Path, out: str, rows: int) -> None:
    ingest(str(source), out, rows_per_shard=rows)
    before = read_files(out)
    decoded, _ = ingest_again(source, out, rows)
    assert decoded.num_decoded == 0
    assert read_files(out) == before


@pytest.mark.parametrize(("rows", "more"), [(250, 3), (2, 1), (2, 6), (3, 40)])
def test_only_new_pairs_are_decoded(source: Path, out: str, rows: int, more: int) -> None:
    ingest(str(source), out, rows_per_shard=rows)
    add_pairs(source, more)
    counting, _ = ingest_again(source, out, rows)
    assert counting.num_decoded == more
    ingest(str(source), f"{out}-fresh", rows_per_shard=rows)
    assert read_newest_files(out) == read_files(f"{out}-fresh")


def test_resharding_and_folds_decode_nothing(source: Path, out: str) -> None:
    ingest(str(source), out, rows_per_shard=1)
    for rows in (3, 250, 2, 1):
        counting, _ = ingest_again(source, out, rows)
        assert counting.num_decoded == 0
    folded = k_fold_split(open_archive(str(source)), folds=3, fold=1, seed=0)
    counting = CountingExecutor()
    manifest = write_records(folded, out, IngestOptions(FRAME_SIZE, 1), counting)
    assert counting.num_decoded == 0
    assert manifest.num_rows("train") + manifest.num_rows("validation") == 7


def test_changed_file_is_decoded(source: Path, out: str) -> None:
    """Size and modification time are unchanged."""
    before = ingest(str(source), out)
    _, mask = damaged_files(source)
    stat, content = mask.stat(), bytearray(mask.read_bytes())
    pixels = np.array(Image.open(mask))
    Image.fromarray(255 - pixels).save(mask)
    assert mask.read_bytes() != bytes(content)
    os.utime(mask, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    counting, after = ingest_again(source, out)
    assert counting.num_decoded == 1
    assert after.fingerprint != before.fingerprint
    mask.write_bytes(content)
    assert ingest_again(source, out)[1] == before


def test_deleted_pair_is_removed(source: Path, out: str) -> None:
    ingest(str(source), out)
    for path in damaged_files(source):
        path.unlink()
    counting, manifest = ingest_again(source, out)
    assert counting.num_decoded == 0
    assert (manifest.num_rows("train"), manifest.num_inputs) == (4, 8)
    assert "ISIC_0000002" not in read_ids(out, "train")


def test_earlier_versions_stay_readable_until_overwritten(source: Path, out: str) -> None:
    versions = [ingest(str(source), out, rows_per_shard=2)]
    orphan = f"{out}/train-00000-of-00004-{0:016x}.parquet"
    storage.write_bytes(orphan, b"of an ingest that was killed")
    for seed in (1, 2):
        add_pairs(source, 2, seed)
        versions.append(ingest(str(source), out, rows_per_shard=2))
    assert len({version.fingerprint for version in versions}) == 3
    for version in versions:
        assert read_version(out, version.fingerprint) == version
        for shard in version.all_shards:
            assert read_shard(out, shard).num_rows == shard.num_rows
    assert read_version(out, None) == versions[-1]
    assert not storage.exists(orphan), "no version names it"
    ingest_again(source, out, 2, overwrite=True)
    assert read_version(out, versions[2].fingerprint) == versions[2]
    with pytest.raises(UsageError, match=f"^{out}: data fingerprint is .* no earlier version"):
        read_version(out, versions[0].fingerprint)
    assert _count_shards(out) == len(versions[2].all_shards)


def test_renamed_pair_is_not_decoded(source: Path, out: str) -> None:
    ingest(str(source), out)
    rename(source, DAMAGED_ID, "ISIC_0000077")
    counting, _ = ingest_again(source, out)
    assert counting.num_decoded == 0
    assert read_ids(out, "train") == {f"ISIC_00000{i}" for i in ("00", "01", "03", "04", "77")}


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b[:99] + b"x" + b[100:], lambda b: b""]
)
def test_damaged_shard_is_rewritten(
    source: Path, out: str, damage: Callable[[bytes], bytes]
) -> None:
    ingest(str(source), out)
    before = read_files(out)
    (shard,) = read_manifest(out).shards("train")
    path = Path(out) / shard.name
    path.write_bytes(damage(path.read_bytes()))
    assert ingest_again(source, out)[0].num_decoded == 5
    assert read_files(out) == before


def test_interrupted_ingest_keeps_the_previous_records(source: Path, out: str) -> None:
    before = ingest(str(source), out, rows_per_shard=2)
    frames = read_ids(out, "train")
    add_pairs(source, 6)

    def interrupted(tasks: Sequence[ShardTask]) -> Iterator[ShardResult]:
        yield from local_executor(1)(tasks[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(open_archive(str(source)), out, IngestOptions(FRAME_SIZE, 2), interrupted)
    assert read_manifest(out) == before
    assert read_ids(out, "train") == frames


# Other writers


def test_two_ingests_at_one_place_are_refused(source: Path, out: str) -> None:
    other = Driver.start()
    try:
        assert other.hold(out) == "held"
        with pytest.raises(UsageError, match=f"^{out}: locked by process {other.process.pid} on "):
            ingest(str(source), out)
    finally:
        other.kill()
    assert ingest(str(source), out).num_inputs == 9  # the other one has exited


def test_an_ingest_that_was_taken_over_deletes_nothing(source: Path, out: str) -> None:
    before = ingest(str(source), out, rows_per_shard=2)
    others = f"{out}/train-00000-of-00002-{0:016x}.parquet"

    def taken_over(tasks: Sequence[ShardTask]) -> Iterator[ShardResult]:
        yield from local_executor(1)(tasks)
        storage.write_json(f"{out}/{LEASE_FILE}", {"lease_id": "another", "host": "far-away"})
        storage.write_bytes(others, b"written by the new holder")

    with pytest.raises(LeaseLostError, match=f"^{out}: lease lost to process 0 on far-away"):
        write_records(open_archive(str(source)), out, IngestOptions(FRAME_SIZE, 250), taken_over)
    assert read_manifest(out) == before
    assert storage.exists(others)
    assert all(storage.exists(f"{out}/{shard.name}") for shard in before.all_shards)


# Near-duplicates


def test_duplicates_are_listed_and_dropped_on_request(source: Path, out: str) -> None:
    generate_archive({"train": 9, "validation": 3}, 3, lambda n, b: _write_file(source / n, b), 100)
    _copy_pair(source, "Training", "ISIC_0000004", "Validation", "ISIC_0000900")
    _copy_pair(source, "Validation", "ISIC_0000010", "Test_v2", "ISIC_0000901")
    kept = ingest(str(source), out)
    duplicates = storage.read_json(f"{out}/profile.json")["duplicates"]
    assert {frozenset((pair["id"], pair["other_id"])) for pair in duplicates} == {
        frozenset(("ISIC_0000004", "ISIC_0000900")),
        frozenset(("ISIC_0000010", "ISIC_0000901")),
    }
    counting, manifest = ingest_again(source, out, drop_duplicates=True)
    assert counting.num_decoded == 0
    assert manifest.num_inputs == kept.num_inputs
    assert {row["name"].rsplit("/")[-1]: row["reason"] for row in read_rejects(out)} == {
        "ISIC_0000004.jpg": "near-duplicate of ISIC_0000900 in validation",
        "ISIC_0000010.jpg": "near-duplicate of ISIC_0000901 in test",
    }
    assert "ISIC_0000004" not in read_ids(out, "train")
    assert "ISIC_0000900" in read_ids(out, "validation")


def test_dropped_duplicates_do_not_count_as_rejects(source: Path, out: str) -> None:
    """`max_rejects` counts unreadable files alone."""
    _copy_pair(source, "Training", "ISIC_0000001", "Validation", "ISIC_0000900")
    options = IngestOptions(FRAME_SIZE, max_rejects=0.0, drop_duplicates=True)
    manifest = write_records(open_archive(str(source)), out, options, local_executor(1))
    assert manifest.num_rejects >= 1


def _copy_pair(source: Path, part: str, name: str, other: str, new: str) -> None:
    for folder, suffix in (("Data", ".jpg"), ("Part1_GroundTruth", "_segmentation.png")):
        content = (source / f"ISIC-2017_{part}_{folder}" / f"{name}{suffix}").read_bytes()
        _write_file(source / f"ISIC-2017_{other}_{folder}" / f"{new}{suffix}", content)


# Interrupted and resumed


@pytest.mark.timeout(300)
def test_killed_ten_times(tmp_path: Path, out: str) -> None:
    source, rng = tmp_path / "archive", random.Random(0)
    generate_archive(
        {"train": 120, "validation": 20}, 0, lambda n, b: _write_file(source / n, b), 64
    )
    words = ["--rows-per-shard", "2", "--workers", "2", "--local"]
    command = [sys.executable, "-m", "segan", "ingest", str(source), out, *words]
    for _ in range(10):
        there = _count_shards(out)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
            while _count_shards(out) == there:
                assert child.poll() is None, "expected more work"
                time.sleep(0.001)
            time.sleep(rng.random() / 50)
            child.kill()
        assert child.returncode == -signal.SIGKILL
    subprocess.run(command, check=True, capture_output=True)
    other = str(tmp_path / "undisturbed")
    subprocess.run([*command[:5], other, *words], check=True, capture_output=True)
    assert read_files(out) == read_files(other)
    assert not list(Path(out).glob(".*")), "partial files are deleted"


def _write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _count_shards(out: str) -> int:
    return len(list(Path(out).glob("*-of-*.parquet")))


def test_many_images_are_compared_by_the_executor(
    source: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _copy_pair(source, "Training", "ISIC_0000004", "Validation", "ISIC_0000900")
    options, tasks_run = IngestOptions(FRAME_SIZE, max_rejects=1.0), []
    expected = write_records(open_archive(str(source)), out, options, local_executor(1))
    profile = storage.read_json(f"{out}/profile.json")
    assert len(profile["duplicates"]) == 1
    monkeypatch.setattr(duplicates, "TASK_SIZE", (2, 2))

    def spread(tasks: Sequence[Task]) -> Iterator[Any]:
        tasks_run.extend(type(task) for task in tasks)
        return local_executor(2)(tasks)

    assert write_records(open_archive(str(source)), f"{out}-2", options, spread) == expected
    assert storage.read_json(f"{out}-2/profile.json")["duplicates"] == profile["duplicates"]
    assert tasks_run.count(CompareTask) > 3
