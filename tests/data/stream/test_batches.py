"""Batches read from records in this process."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from segan.data.records.format import Manifest, Record, make_manifest, shard_prefix, write_shard
from segan.data.stream.batches import Batch, StreamSpec, local_batches
from segan.data.stream.sampler import DeterministicSampler
from segan.errors import StorageError

SIZES = (4, 1, 5)
ROWS, HEIGHT, WIDTH, CLASSES = sum(SIZES), 3, 4, 2


def make_record(index: int) -> Record:
    rng = np.random.default_rng(index)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return Record(
        f"id-{index}", image, rng.integers(0, 2, (CLASSES, HEIGHT, WIDTH), np.uint8), (9, 9)
    )


RECORDS = {record.id: record for record in map(make_record, range(ROWS))}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    place, rows = str(tmp_path_factory.mktemp("records")), iter(RECORDS.values())
    shards = [
        write_shard(
            place,
            shard_prefix("train", i, len(SIZES)),
            [next(rows) for _ in range(size)],
            HEIGHT,
            WIDTH,
            CLASSES,
        )
        for i, size in enumerate(SIZES)
    ]
    return place, make_manifest((HEIGHT, WIDTH, CLASSES), {"train": shards}, [], "")


def make_spec(
    records: tuple[str, Manifest], start: int = 0, batch: int = 4, epochs: int = 3
) -> StreamSpec:
    place, manifest = records
    return StreamSpec(place, DeterministicSampler(manifest, "train", 7), epochs, start, batch, 1)


def content(batch: Batch) -> tuple[object, ...]:
    return (batch.position, batch.epochs, batch.ids, batch.image.tobytes(), batch.mask.tobytes())


def test_a_batch_holds_the_records_pixels(records: tuple[str, Manifest]) -> None:
    for batch in local_batches(make_spec(records)):
        assert batch.image.dtype == batch.mask.dtype == np.uint8
        np.testing.assert_array_equal(batch.image, [RECORDS[name].image for name in batch.ids])
        np.testing.assert_array_equal(batch.mask, [RECORDS[name].mask for name in batch.ids])


def test_batches_are_full_and_follow_one_another(records: tuple[str, Manifest]) -> None:
    batches = list(local_batches(make_spec(records)))
    assert [batch.position for batch in batches] == [0, 4, 8, 12, 16, 20, 24]
    assert all(len(batch.ids) == len(batch.epochs) == 4 for batch in batches)
    seen = [name for batch in batches for name in batch.ids]
    assert set(seen[:ROWS]) == set(seen[ROWS : 2 * ROWS]) == set(RECORDS)


def test_a_batch_can_span_two_epochs(records: tuple[str, Manifest]) -> None:
    batches = list(local_batches(make_spec(records)))
    assert batches[2].epochs == [0, 0, 1, 1]
    assert batches[5].epochs == [2, 2, 2, 2]


def test_resumed_stream_has_the_same_batches(records: tuple[str, Manifest]) -> None:
    whole = [content(batch) for batch in local_batches(make_spec(records))]
    resumed = [content(batch) for batch in local_batches(make_spec(records, start=12))]
    assert resumed == whole[3:]


def test_exhausted_stream_is_empty(records: tuple[str, Manifest]) -> None:
    assert list(local_batches(make_spec(records, start=28))) == []


def test_spec_can_be_pickled(records: tuple[str, Manifest]) -> None:
    travelled = pickle.loads(pickle.dumps(make_spec(records)))
    assert travelled == make_spec(records)
    assert [content(b) for b in local_batches(travelled)] == [
        content(b) for b in local_batches(make_spec(records))
    ]


def test_ranks_take_the_batches_of_a_step_in_turn(records: tuple[str, Manifest]) -> None:
    spec = make_spec(records)
    both = dataclasses.replace(spec, world_size=2)
    by_rank = [[content(batch) for batch in local_batches(both, rank)] for rank in (0, 1)]
    steps = (both.stop - both.start) // both.global_batch_size
    assert [len(batches) for batches in by_rank] == [steps, steps]
    of_one = [content(batch) for batch in local_batches(spec)]
    assert [b for step in zip(*by_rank, strict=True) for b in step] == of_one[: 2 * steps]


def test_missing_records(records: tuple[str, Manifest], tmp_path: Path) -> None:
    elsewhere = str(tmp_path)
    with pytest.raises(StorageError, match=f"{elsewhere}/train-.*: not found"):
        next(local_batches(make_spec((elsewhere, records[1]))))
