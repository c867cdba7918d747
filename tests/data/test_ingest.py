"""Ingest: every pair becomes a record or a reject with its reason, and nothing is lost between."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segan import storage
from segan.data.archive import Archive, Pair, check_rejects, open_archive, read_record
from segan.data.ingest import clear_place, finish, plan_shards, write_task
from segan.data.records import (
    MANIFEST,
    Manifest,
    read_manifest,
    read_rejects,
    read_shard,
    shard_of,
    to_frames,
)
from segan.data.synthetic import draw_archive
from segan.errors import SeganError, UsageError

SIZE = (20, 16)
COUNTS = {"train": 5, "validation": 2, "test": 2}
HURT = "ISIC_0000002"  # of train


def draw(place: str) -> None:
    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(place, name), content)

    draw_archive(COUNTS, 0, write, 32)


def ingest(source: str, out: str, most: float = 1.0, rows_per_shard: int = 250) -> Manifest:
    archive = open_archive(source)
    results = [write_task(task, out, SIZE) for task in plan_shards(archive, rows_per_shard)]
    return finish(archive, out, results, SIZE, most)


def hurt(source: Path) -> tuple[Path, Path]:
    """Image and mask of the pair to damage."""
    return (
        source / "ISIC-2017_Training_Data" / f"{HURT}.jpg",
        source / "ISIC-2017_Training_Part1_GroundTruth" / f"{HURT}_segmentation.png",
    )


def ids(out: str, split: str) -> set[str]:
    manifest = read_manifest(out)
    tables = [read_shard(out, shard) for shard in manifest.shards(split)]
    return {name for table in tables for name in table["id"].to_pylist()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw(str(folder))
    return folder


@pytest.fixture
def source(drawn: Path, tmp_path: Path) -> Path:
    """An archive to damage."""
    return Path(shutil.copytree(drawn, tmp_path / "source"))


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "records")


# One bad pair among good ones

Damage = Callable[[Path, Path], Any]


def saved_as(mode: str, value: Any = 0) -> Damage:
    """Damage that puts another mask of the same size in the mask's place."""

    def damage(image: Path, mask: Path) -> None:
        Image.new(mode, Image.open(image).size, value).save(mask)

    return damage


def smudged(image: Path, mask: Path) -> None:
    pixels = np.array(Image.open(mask))
    pixels[0, :3] = (1, 128, 254)
    Image.fromarray(pixels).save(mask)


def cut(image: Path, mask: Path) -> None:
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no mask": (lambda image, mask: mask.unlink(), "no mask; expected {mask}"),
    "no image": (lambda image, mask: image.unlink(), "no image; expected {image}"),
    "mask of another size": (
        lambda image, mask: Image.new("L", (7, 5)).save(mask),
        "{mask}: expected the image's {width} x {height} pixels, found 7 x 5",
    ),
    "mask with values between": (
        smudged,
        "{mask}: expected 0 and 255 alone, found 3 pixels between (1, 128, 254)",
    ),
    "mask of 0 and 1": (
        saved_as("L", 1),
        "{mask}: expected 0 and 255 alone, found {area} pixels between (1)",
    ),
    "mask in colour": (
        saved_as("RGB"),
        "{mask}: expected a mask with one 8-bit channel, found RGB",
    ),
    "mask that is none": (
        lambda image, mask: mask.write_text("a mask"),
        "{mask}: expected an image, found 6 bytes that are none",
    ),
    "image that is none": (
        lambda image, mask: image.write_text("an image"),
        "{image}: expected an image, found 8 bytes that are none",
    ),
    "half an image": (cut, "{image}: not a whole image (image file is truncated"),
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
def test_a_bad_pair_is_rejected_by_name_and_the_rest_goes_on(
    source: Path, out: str, damage: Damage, reason: str
) -> None:
    image, mask = hurt(source)
    width, height = Image.open(image).size
    expected = reason.format(
        image=image.name, mask=mask.name, width=width, height=height, area=width * height
    )
    damage(image, mask)
    manifest = ingest(str(source), out)
    (reject,) = read_rejects(out)
    assert HURT in reject["name"]
    assert reject["split"] == "train"
    assert reject["reason"].startswith(expected)
    assert manifest.rejects == 1
    assert sum(manifest.rows(split) for split in COUNTS) + 1 == sum(COUNTS.values())
    assert ids(out, "train") == {f"ISIC_000000{i}" for i in (0, 1, 3, 4)}
    assert ids(out, "validation") == {"ISIC_0000005", "ISIC_0000006"}


def test_a_shard_of_rejects_alone_is_no_shard(source: Path, out: str) -> None:
    for mask in (source / "ISIC-2017_Validation_Part1_GroundTruth").iterdir():
        mask.write_bytes(b"")
    manifest = ingest(str(source), out)
    assert manifest.rejects == COUNTS["validation"]
    assert list(manifest.splits) == ["test", "train"]
    assert len(list(Path(out).glob("*.parquet"))) == 3  # with the rejects


def test_more_rejects_than_the_share_leave_no_manifest(source: Path, out: str) -> None:
    cut(*hurt(source))
    with pytest.raises(SeganError, match="1 of 9 pairs rejected") as caught:
        ingest(str(source), out, most=0.1)
    assert f"{HURT}.jpg: not a whole image" in str(caught.value)
    assert not storage.exists(f"{out}/{MANIFEST}")
    assert ingest(str(source), out, most=1 / 9).rejects == 1


def test_pairs_without_a_partner_count_as_rejects(source: Path, out: str) -> None:
    hurt(source)[0].unlink()
    archive = open_archive(str(source))
    with pytest.raises(SeganError, match="1 of 9 pairs rejected"):
        check_rejects(archive.rejects, 9, 0.1, archive.uri)
    with pytest.raises(SeganError, match="1 of 9 pairs rejected"):
        ingest(str(source), out, most=0.1)


# What is written


def test_records_are_the_archives_pairs(drawn: Path, out: str) -> None:
    manifest = ingest(str(drawn), out)
    archive = open_archive(str(drawn))
    assert (manifest.width, manifest.height, manifest.classes) == (*SIZE, 1)
    assert {split: manifest.rows(split) for split in manifest.splits} == COUNTS
    for split in COUNTS:
        (shard,) = manifest.shards(split)
        table = read_shard(out, shard)
        frames = to_frames(table, manifest)
        pairs = {pair.id: pair for pair in archive.split(split)}
        assert set(frames.ids) == set(pairs)
        for row, name in enumerate(frames.ids):
            record = read_record(pairs[name], SIZE)
            np.testing.assert_array_equal(frames.image[row], record.image)
            np.testing.assert_array_equal(frames.mask[row], record.mask)
            assert record.original_size == (
                table["original_width"][row].as_py(),
                table["original_height"][row].as_py(),
            )


def test_the_order_of_results_changes_nothing(drawn: Path, out: str) -> None:
    archive = open_archive(str(drawn))
    results = [write_task(task, out, SIZE) for task in plan_shards(archive, 2)]
    forwards = finish(archive, out, results, SIZE)
    backwards = finish(archive, out, reversed(results), SIZE)
    assert forwards == backwards
    assert len(forwards.shards("train")) > 1


def test_ingesting_again_gives_the_same_bytes(drawn: Path, out: str) -> None:
    first = ingest(str(drawn), out, rows_per_shard=2)
    assert ingest(str(drawn), out + "-again", rows_per_shard=2) == first


def test_another_pixel_is_another_fingerprint(source: Path, out: str) -> None:
    before = ingest(str(source), out).fingerprint
    saved_as("L", 255)(*hurt(source))
    assert ingest(str(source), out).fingerprint != before


@pytest.mark.integration
def test_a_bucket_holds_the_same_records(drawn: Path, out: str, bucket: str) -> None:
    draw(f"{bucket}/archive")
    there = ingest(f"{bucket}/archive", f"{bucket}/records", rows_per_shard=2)
    here = ingest(str(drawn), out, rows_per_shard=2)
    assert there.fingerprint == here.fingerprint
    assert there.splits == here.splits
    assert read_manifest(f"{bucket}/records") == there
    with pytest.raises(UsageError, match="--overwrite"):
        clear_place(f"{bucket}/records", overwrite=False)
    clear_place(f"{bucket}/records", overwrite=True)
    assert storage.list_files(f"{bucket}/records") == []


# Shards


def archive_of(numbers: dict[str, int]) -> Archive:
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
    archive = archive_of(numbers)
    tasks = plan_shards(archive, rows_per_shard)
    planned = [pair for task in tasks for pair in task.pairs]
    assert sorted(planned, key=repr) == sorted(archive.pairs, key=repr)
    assert len({task.name for task in tasks}) == len(tasks)
    for task in tasks:
        shards = -(-numbers[task.split] // rows_per_shard)
        (index,) = {shard_of(pair.id, shards) for pair in task.pairs}
        assert task.name == f"{task.split}-{index:05d}-of-{shards:05d}.parquet"
        assert {pair.split for pair in task.pairs} == {task.split}


def test_a_shard_holds_a_row_at_least() -> None:
    with pytest.raises(UsageError, match="--rows-per-shard 0: expected at least 1"):
        plan_shards(archive_of({"train": 1}), 0)


# Records that are there already


def test_records_are_replaced_only_with_leave(drawn: Path, out: str) -> None:
    before = ingest(str(drawn), out)
    with pytest.raises(UsageError, match=f"{out}: records are here already; use --overwrite"):
        clear_place(out, overwrite=False)
    assert read_manifest(out) == before
    assert ids(out, "train") == {f"ISIC_000000{i}" for i in range(5)}


def test_overwriting_clears_the_records_and_leaves_other_files(drawn: Path, out: str) -> None:
    ingest(str(drawn), out)
    storage.write_bytes(f"{out}/README.md", b"mine")
    clear_place(out, overwrite=True)
    assert [file.name for file in storage.list_files(out)] == ["README.md"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_place_is_clear(out: str, overwrite: bool) -> None:
    clear_place(out, overwrite)
    storage.write_bytes(f"{out}/train-00000-of-00001.parquet", b"of a job that was stopped")
    clear_place(out, overwrite)


def test_overwriting_spares_records_further_down(drawn: Path, out: str) -> None:
    """`--overwrite` at a root of records must not empty those below it."""
    ingest(str(drawn), out)
    below = ingest(str(drawn), f"{out}/below")
    clear_place(out, overwrite=True)
    assert read_manifest(f"{out}/below") == below
    assert ids(f"{out}/below", "train") == {f"ISIC_000000{i}" for i in range(5)}


def test_overwriting_replaces_records_and_nothing_else(out: str) -> None:
    """A checkpoint's manifest has the same name."""
    storage.write_json(f"{out}/{MANIFEST}", {"files": {}, "info": {}})
    with pytest.raises(SeganError, match=f"{out}"):
        clear_place(out, overwrite=True)
    assert storage.exists(f"{out}/{MANIFEST}")
