"""The sampler's rows through Ray Data: the same rows, in the same order, to the right rank."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest
from ray.data import DataIterator

from ray_jobs.training import datasource
from ray_jobs.training.stream import StreamDataConfig, iter_batches
from segan.data.records.format import read_manifest, read_shard
from segan.data.stream.batches import Batch, StreamSpec, to_batch
from segan.data.stream.sampler import DeterministicSampler

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

EPOCHS = 3


def make_spec(records: str, workers: int, start: int = 0, batch_size: int = 4) -> StreamSpec:
    sampler = DeterministicSampler(read_manifest(records), "train", seed=7)
    return StreamSpec(records, sampler, EPOCHS, start, batch_size, workers)


def batches_through_ray(spec: StreamSpec) -> list[list[Batch]]:
    """Each rank's batches, as its worker gets them; all ranks read at the same time."""
    splits = StreamDataConfig().configure({"train": spec}, spec.world_size)

    def drain(shard: dict[str, DataIterator]) -> list[Batch]:
        return list(iter_batches(shard["train"], spec))

    with ThreadPoolExecutor(spec.world_size) as pool:
        return list(pool.map(drain, splits))


def batches_in_process(spec: StreamSpec) -> list[list[Batch]]:
    """The batches that each rank should get, read directly from the sampler."""
    manifest = spec.sampler.manifest
    blocks = spec.sampler.blocks(
        spec.start, spec.stop, spec.batch_size, lambda shard: read_shard(spec.records, shard)
    )
    batches = [to_batch(block, manifest) for block in blocks]
    return [batches[rank :: spec.world_size] for rank in range(spec.world_size)]


def assert_same_batches(found: list[list[Batch]], expected: list[list[Batch]]) -> None:
    assert [[b.position for b in rank] for rank in found] == [
        [b.position for b in rank] for rank in expected
    ]
    for mine, theirs in zip(chain(*found), chain(*expected), strict=True):
        assert (mine.ids, mine.epochs) == (theirs.ids, theirs.epochs)
        assert np.array_equal(mine.image, theirs.image)
        assert np.array_equal(mine.mask, theirs.mask)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_rank_gets_its_part_of_every_step(records: str, workers: int) -> None:
    spec = make_spec(records, workers)
    assert_same_batches(batches_through_ray(spec), batches_in_process(spec))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_block_holds_the_batches_of_several_steps(records: str, workers: int) -> None:
    # 42 rows in 4 shards: 10.5 a shard, so 5 steps of 2 rows share a block. 3 epochs are 63 of
    # them, and 13 blocks of a rank reach 2 steps past the last.
    spec = make_spec(records, workers, batch_size=2 // workers)
    assert datasource.steps_per_block(spec) == 5
    assert datasource.SamplerDatasource(spec).row_ranges()[-1][1] == spec.stop + 2 * 2
    assert_same_batches(batches_through_ray(spec), batches_in_process(spec))


def test_every_row_comes_once_an_epoch(records: str) -> None:
    # 42 rows and 6 a step: every epoch is used to its last row.
    spec = make_spec(records, workers=2, batch_size=3)
    seen = [
        (epoch, sample_id)
        for rank in batches_through_ray(spec)
        for batch in rank
        for epoch, sample_id in zip(batch.epochs, batch.ids, strict=True)
    ]
    ids = {sample_id for _, sample_id in seen}
    assert len(ids) == 42
    assert sorted(seen) == sorted((epoch, i) for epoch in range(EPOCHS) for i in ids)


def test_a_stream_that_starts_later_equals_the_end_of_a_full_one(records: str) -> None:
    start = 5 * 2 * 4
    full = batches_in_process(make_spec(records, workers=2))
    assert_same_batches(
        batches_through_ray(make_spec(records, 2, start)), [rank[5:] for rank in full]
    )


def test_records_too_large_for_memory_are_read_shard_by_shard(
    records: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasource, "OBJECT_STORE_FRACTION", 0.0)
    spec = make_spec(records, workers=2)
    assert datasource._cache_shards_in_object_store(spec) == {}
    assert_same_batches(batches_through_ray(spec), batches_in_process(spec))


def test_row_ranges_are_whole_steps_and_limited_in_number(
    records: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasource, "MAX_READ_TASKS", 3)
    spec = make_spec(records, workers=2)
    ranges = datasource.SamplerDatasource(spec).row_ranges()
    assert len(ranges) <= 4
    assert ranges[0][0] == 0
    assert ranges[-1][1] == spec.stop
    assert all((last - first) % spec.global_batch_size == 0 for first, last in ranges)


def test_blocks_are_bounded_whatever_the_number_of_workers(records: str) -> None:
    # A row is 135 * 180 * 4 + 64 = 97264 bytes. 16 MB hold 164 of them, so 6 batches of 25; 64 MB
    # hold 658, so 6 steps of 100 rows, 3 of 200 and none of 1600.
    manifest = read_manifest(records)
    (shard, *_) = manifest.shards("train")
    large = shard.model_copy(update={"num_rows": 5000})
    sampler = DeterministicSampler(
        manifest.model_copy(update={"splits": {"train": (large,)}}), "train", 0
    )
    found = [
        datasource.steps_per_block(StreamSpec(records, sampler, 1, 0, 25, workers))
        for workers in (1, 2, 4, 8, 64)
    ]
    assert found == [6, 6, 6, 3, 1]
