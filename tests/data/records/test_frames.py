"""The frames of a split: each of one rank, each shard read once, and none kept in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segan.data.records import frames
from segan.data.records.format import (
    Manifest,
    Record,
    Shard,
    make_manifest,
    read_shard,
    shard_prefix,
    write_shard,
)
from segan.data.records.frames import FrameShare, map_samples
from tests.samples import read_samples

SIZES = (5, 1, 7, 4)
WORLD_SIZES = (1, 2, 3, 4, 5, 9, 20)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    place, rng = str(tmp_path_factory.mktemp("records")), np.random.default_rng(0)
    rows = iter(range(sum(SIZES)))
    shards = []
    for index, size in enumerate(SIZES):
        written = [
            Record(
                f"id-{next(rows):02d}",
                rng.integers(0, 256, (3, 4, 3), np.uint8),
                rng.integers(0, 2, (2, 3, 4), np.uint8),
                (9, 9),
            )
            for _ in range(size)
        ]
        prefix = shard_prefix("validation", index, len(SIZES))
        shards.append(write_shard(place, prefix, written, 3, 4, 2))
    return place, make_manifest((3, 4, 2), {"validation": shards}, [], "")


def share(records: tuple[str, Manifest], rank: int = 0, world_size: int = 1) -> FrameShare:
    return FrameShare(*records, "validation", rank, world_size)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_each_frame_is_of_one_rank(records: tuple[str, Manifest], world_size: int) -> None:
    shares = [share(records, rank, world_size) for rank in range(world_size)]
    found = [[i for batch in one.batches(3) for i in batch.ids] for one in shares]
    assert [len(ids) for ids in found] == [one.count for one in shares]
    assert sorted(i for ids in found for i in ids) == [f"id-{row:02d}" for row in range(17)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("kept_bytes", [0, 1e9])
def test_a_shard_is_read_once_whatever_the_number_of_ranks(
    records: tuple[str, Manifest],
    world_size: int,
    kept_bytes: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []

    def reading(uri: str, shard: Shard) -> object:
        read.append(shard.name)
        return read_shard(uri, shard)

    monkeypatch.setattr(frames, "read_shard", reading)
    monkeypatch.setattr(frames, "KEPT_BYTES", kept_bytes)
    shares = [share(records, rank, world_size) for rank in range(world_size)]
    first = [[batch.ids for batch in one.batches(2)] for one in shares]
    names = sorted(shard.name for shard in records[1].shards("validation"))
    assert sorted(read) == names
    assert [[batch.ids for batch in one.batches(2)] for one in shares] == first
    assert sorted(read) == (names if kept_bytes else sorted(2 * names))


def test_batches_have_the_frames_of_the_records(records: tuple[str, Manifest]) -> None:
    whole = read_samples(*records, "validation")
    batches = list(share(records).batches(3))
    assert [len(batch.ids) for batch in batches] == [3, 2, 1, 3, 3, 1, 3, 1]
    assert [i for batch in batches for i in batch.ids] == whole.ids
    np.testing.assert_array_equal(np.concatenate([b.image for b in batches]), whole.image)
    np.testing.assert_array_equal(np.concatenate([b.mask for b in batches]), whole.mask)


def test_mapped_frames_are_those_in_memory(records: tuple[str, Manifest], tmp_path: Path) -> None:
    whole, mapped = (
        read_samples(*records, "validation"),
        map_samples(*records, "validation", tmp_path),
    )
    assert mapped.ids == whole.ids
    assert isinstance(mapped.image, np.memmap)
    np.testing.assert_array_equal(mapped.image, whole.image)
    np.testing.assert_array_equal(mapped.mask, whole.mask)
