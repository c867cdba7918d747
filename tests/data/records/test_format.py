"""Records: round trip, damaged files and fingerprints."""

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segan import storage
from segan.data.records.format import (
    MANIFEST,
    Manifest,
    Record,
    Shard,
    make_manifest,
    parse_shard_name,
    read_manifest,
    read_rejects,
    read_shard,
    shard_index,
    shard_prefix,
    to_samples,
    write_manifest,
    write_shard,
)
from segan.errors import CorruptedError, StorageError, UsageError

HEIGHT, WIDTH = 5, 7


def records(number: int, classes: int = 1, seed: int = 0) -> list[Record]:
    rng = np.random.default_rng(seed)
    return [
        Record(
            f"ISIC_{index:07d}",
            rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8),
            rng.integers(0, 2, (classes, HEIGHT, WIDTH), np.uint8),
            (int(rng.integers(600, 7000)), int(rng.integers(500, 5000))),
        )
        for index in range(number)
    ]


def write(folder: str, rows: Sequence[Record], split: str = "train") -> Manifest:
    classes = rows[0].mask.shape[0]
    shard = write_shard(folder, shard_prefix(split, 0, 1), rows, HEIGHT, WIDTH, classes)
    manifest = make_manifest((HEIGHT, WIDTH, classes), {split: [shard]}, [], "source")
    write_manifest(folder, manifest, [])
    return manifest


def read(folder: str) -> pa.Table:
    return read_shard(folder, read_manifest(folder).shards("train")[0])


def change(record: Record, part: str) -> Record:
    """`record` with its id, or the last value of its image or mask, changed."""
    if part == "id":
        return dataclasses.replace(record, id=record.id + "0")
    pixels = getattr(record, part).copy()
    pixels.flat[-1] ^= 1
    return dataclasses.replace(record, **{part: pixels})


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path)


# Round trip


@pytest.mark.parametrize("classes", [1, 3])
def test_write_and_read(folder: str, classes: int) -> None:
    rows = records(9, classes)
    manifest = write(folder, rows)
    assert read_manifest(folder) == manifest
    table = read(folder)
    frames = to_samples(table, manifest)
    assert frames.ids == [row.id for row in rows]
    np.testing.assert_array_equal(frames.image, [row.image for row in rows])
    np.testing.assert_array_equal(frames.mask, [row.mask for row in rows])
    assert table["original_width"].to_pylist() == [row.original_size[0] for row in rows]
    assert table["original_height"].to_pylist() == [row.original_size[1] for row in rows]


def test_manifest_of_two_splits(folder: str) -> None:
    shards = [
        write_shard(folder, shard_prefix("train", i, 2), records(3 + i), HEIGHT, WIDTH, 1)
        for i in range(2)
    ]
    test = write_shard(folder, shard_prefix("test", 0, 1), records(2), HEIGHT, WIDTH, 1)
    rejects = [{"name": "a.jpg", "split": "train", "reason": "a reason"}]
    splits = {"train": shards, "test": [test]}
    manifest = make_manifest((HEIGHT, WIDTH, 1), splits, rejects, "s3://bucket/isic")
    write_manifest(folder, manifest, rejects)
    assert (manifest.num_rows("train"), manifest.num_rows("test")) == (7, 2)
    assert [shard.prefix for shard in manifest.shards("train")] == [
        "train-00000-of-00002",
        "train-00001-of-00002",
    ]
    for shard in manifest.shards("train"):
        assert shard.name == f"{shard.prefix}-{shard.sha256[:16]}.parquet"
    assert manifest.num_inputs == 10
    assert (manifest.num_rejects, manifest.source) == (1, "s3://bucket/isic")
    assert read_rejects(folder) == rejects
    for shard in shards:
        assert (Path(folder) / shard.name).stat().st_size == shard.bytes


def test_error_of_an_unknown_split_lists_the_splits(folder: str) -> None:
    with pytest.raises(UsageError, match="split 'test': the records have train"):
        write(folder, records(1)).num_rows("test")


def test_no_rejects_are_an_empty_table(folder: str) -> None:
    write(folder, records(1))
    assert read_rejects(folder) == []


# Samples


def test_samples_are_views(folder: str) -> None:
    manifest = write(folder, records(9))
    table = read(folder)
    pixels = np.frombuffer(table["image"].chunk(0).buffers()[1], np.uint8)
    masks = np.frombuffer(table["mask"].chunk(0).buffers()[1], np.uint8)
    for part in (table, table.slice(2, 4)):
        frames = to_samples(part, manifest)
        assert np.shares_memory(frames.image, pixels)
        assert np.shares_memory(frames.mask, masks)


@pytest.mark.parametrize(("offset", "length"), [(0, 9), (0, 3), (2, 4), (8, 1), (3, 0)])
def test_samples_of_a_table_slice(folder: str, offset: int, length: int) -> None:
    rows = records(9, classes=2)
    manifest = write(folder, rows)
    frames = to_samples(read(folder).slice(offset, length), manifest)
    part = rows[offset : offset + length]
    assert frames.ids == [row.id for row in part]
    assert frames.image.shape == (length, HEIGHT, WIDTH, 3)
    assert frames.mask.shape == (length, 2, HEIGHT, WIDTH)
    assert frames.image.tobytes() == b"".join(row.image.tobytes() for row in part)
    assert frames.mask.tobytes() == b"".join(row.mask.tobytes() for row in part)


def test_samples_of_a_chunked_table(folder: str) -> None:
    rows = records(9)
    manifest = write(folder, rows)
    table = read(folder)
    pieces = pa.concat_tables([table.slice(7, 2), table.slice(0, 3)])
    frames = to_samples(pieces, manifest)
    np.testing.assert_array_equal(frames.image, [rows[i].image for i in (7, 8, 0, 1, 2)])
    np.testing.assert_array_equal(frames.mask, [rows[i].mask for i in (7, 8, 0, 1, 2)])


# Fingerprint


@pytest.mark.parametrize("part", ["image", "mask", "id"])
@pytest.mark.parametrize("row", [0, 4])
def test_fingerprint_depends_on_every_pixel_and_id(folder: str, part: str, row: int) -> None:
    rows = records(5)
    before = write(folder, rows).fingerprint
    assert write(folder, rows).fingerprint == before
    rows[row] = change(rows[row], part)
    assert write(folder, rows).fingerprint != before


def test_fingerprint_depends_on_the_split(folder: str) -> None:
    rows = records(5)
    assert write(folder, rows).fingerprint != write(folder, rows, "test").fingerprint


def test_fingerprint_does_not_depend_on_the_encoding(folder: str) -> None:
    rows = records(5)
    manifest = write(folder, rows)
    (shard,) = manifest.shards("train")
    encoded_anew = shard.model_copy(update={"sha256": "0" * 64, "bytes": 1})
    splits = {"train": [encoded_anew]}
    again = make_manifest((HEIGHT, WIDTH, 1), splits, [], "another source")
    assert again.fingerprint == manifest.fingerprint


def test_fingerprint_does_not_depend_on_the_order_of_splits(folder: str) -> None:
    shard = write_shard(folder, "a", records(2), HEIGHT, WIDTH, 1)
    other = write_shard(folder, "b", records(3), HEIGHT, WIDTH, 1)
    first, second = (
        make_manifest((HEIGHT, WIDTH, 1), splits, [], "")
        for splits in ({"a": [shard], "b": [other]}, {"b": [other], "a": [shard]})
    )
    assert first.fingerprint == second.fingerprint


# Damage


def flip_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [flip_bit, lambda c: c[:-1], lambda c: c + b"x", lambda _: b""])
def test_damaged_shard(folder: str, damage: Callable[[bytes], bytes]) -> None:
    (shard,) = write(folder, records(5)).shards("train")
    path = Path(folder) / shard.name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StorageError) as caught:
        read_shard(folder, shard)
    assert str(caught.value).startswith(
        f"{path}: checksum mismatch: expected {shard.bytes} bytes with the manifest's "
        f"checksum, found {path.stat().st_size} bytes"
    )


def rewrite(folder: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Changes the table of a shard, with a valid manifest."""
    manifest = write(folder, records(4))
    (shard,) = manifest.shards("train")
    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(f"{folder}/{shard.name}")), sink, compression="zstd")
    content = sink.getvalue()
    storage.write_bytes(f"{folder}/{shard.name}", content)
    changed = shard.model_copy(update={"sha256": storage.sha256(content)})
    write_manifest(folder, manifest.model_copy(update={"splits": {"train": (changed,)}}), [])


def replace_column(table: pa.Table, name: str, values: list[object]) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(name), pa.array(values, table[name].type))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop_columns(["mask"]), "mask"),
        (lambda t: t.rename_columns([*t.column_names[:-1], "x"]), "expected the columns"),
        (lambda t: t.slice(0, 3), "expected 4 rows by the manifest, found 3"),
        (lambda t: replace_column(t, "mask", [b"\7" * 35] * 4), "masks of 0 and 1"),
        (lambda t: replace_column(t, "image", [None] * 4), "expected a value in every row"),
        (lambda t: replace_column(t, "id", ["a", None, "c", "d"]), "expected a value in every row"),
        (
            lambda t: pa.concat_tables([replace_column(t, "image", [bytes(105)] * 4)] * 9999),
            "39996 images of 105 bytes in a file of",
        ),
    ],
    ids=["no mask", "a name", "rows", "values", "null", "null id", "a bomb"],
)
def test_a_shard_that_is_none_is_refused(
    folder: str, change: Callable[[pa.Table], pa.Table], said: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(CorruptedError) as caught:
        read(folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_frames_of_another_size_than_the_manifests_are_refused(folder: str) -> None:
    manifest = write(folder, records(4))
    other = manifest.model_copy(update={"height": HEIGHT + 1})
    with pytest.raises(CorruptedError, match="expected frames of 7 x 6 pixels with 1 classes"):
        to_samples(read(folder), other)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(99) + b"PAR1", b"text"])
def test_a_damaged_table_of_rejects_is_one_error(folder: str, content: bytes) -> None:
    write(folder, records(4))
    storage.write_bytes(f"{folder}/rejects.parquet", content)
    with pytest.raises(CorruptedError, match=r"rejects\.parquet: not a table of rejects"):
        read_rejects(folder)


def test_shard_of_other_records(folder: str) -> None:
    (shard,) = write(folder, records(5)).shards("train")
    other = write_shard(folder, "other", records(5, seed=1), HEIGHT, WIDTH, 1)
    (Path(folder) / other.name).replace(Path(folder) / shard.name)
    with pytest.raises(StorageError, match="checksum"):
        read_shard(folder, shard)


def test_missing_shard(folder: str) -> None:
    (shard,) = write(folder, records(5)).shards("train")
    (Path(folder) / shard.name).unlink()
    with pytest.raises(StorageError, match=f"{folder}/{shard.name}: not found"):
        read_shard(folder, shard)


@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.integration)])
def test_missing_records(where: str, folder: str, request: pytest.FixtureRequest) -> None:
    uri = f"{folder if where == 'local' else request.getfixturevalue('bucket')}/nothing"
    with pytest.raises(StorageError) as caught:
        read_manifest(uri)
    assert str(caught.value) == (
        f"{uri}: no records found (no manifest.json); write them with `segan ingest`"
    )


def test_empty_records_uri() -> None:
    with pytest.raises(UsageError, match=r"data\.records: expected the URI of records"):
        read_manifest("")


@pytest.mark.parametrize(
    "content",
    [b"{}", b"[]", b"7", b'{"files": {}, "info": {}}', b'{"height": "tall"}', b"", b"{half"],
)
def test_manifest_of_something_else(folder: str, content: bytes) -> None:
    storage.write_bytes(storage.join(folder, MANIFEST), content)
    with pytest.raises(StorageError) as caught:
        read_manifest(folder)
    assert str(caught.value).startswith(f"{folder}/{MANIFEST}: ")
    assert "\n" not in str(caught.value)


# Shards


@pytest.mark.parametrize(
    ("sample_id", "shards", "expected"),
    [
        ("ISIC_0000000", 1, 0),
        ("ISIC_0000000", 8, 7),
        ("ISIC_0000000", 1000, 167),
        ("ISIC_0000001", 8, 3),
        ("ISIC_0015372", 1000, 953),
        ("ä", 1000, 529),
    ],
)
def test_shard_index_does_not_change(sample_id: str, shards: int, expected: int) -> None:
    assert shard_index(sample_id, shards) == expected


@pytest.mark.parametrize("shards", [2, 8, 40])
def test_shards_have_similar_sizes(shards: int) -> None:
    counts = np.bincount([shard_index(f"ISIC_{i:07d}", shards) for i in range(2000)])
    mean = 2000 / shards
    assert len(counts) == shards
    assert np.abs(counts - mean).max() < 4 * np.sqrt(mean)


def test_a_shard_is_plain_parquet(folder: str) -> None:
    """Two classes of 5 x 7 pixels."""
    shard = write_shard(folder, "a", records(2, classes=2), HEIGHT, WIDTH, 2)
    table = pq.read_table(io.BytesIO(storage.read_bytes(f"{folder}/{shard.name}")))
    assert table.schema.field("image").type == pa.binary(105)
    assert table.schema.field("mask").type == pa.binary(70)
    assert table.num_rows == shard.num_rows == 2
    assert json.loads(shard.model_dump_json()) == Shard(**shard.model_dump()).model_dump()


def test_names_of_shards_hold_any_count() -> None:
    """More than 99,999 shards are more than 16 million images."""
    for index, count in ((3, 8), (99_999, 131_072), (131_071, 131_072)):
        name = f"{shard_prefix('train', index, count)}-{0:016x}.parquet"
        found = parse_shard_name(name)
        assert found is not None
        assert (found.split, found.index, found.num_shards) == ("train", index, count)
    assert shard_prefix("train", 3, 8) == "train-00003-of-00008"
    names = [shard_prefix("train", index, 131_072) for index in (9, 10, 99_999, 100_000)]
    assert names == sorted(names)
