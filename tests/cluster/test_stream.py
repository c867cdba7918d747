"""The run's batches through Ray Data: the same rows, in the same order, to the right rank."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest
import ray

from ray_jobs.training import stream
from ray_jobs.training.feed import StreamedShards
from ray_jobs.training.stream import RankStream, StreamDataConfig, open_stream
from segan.data.records.format import read_manifest
from segan.data.stream.batches import Batch, StreamSpec, local_batches, shard_visits
from segan.data.stream.sampler import DeterministicSampler

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

EPOCHS = 3


def make_spec(
    records: str, workers: int, start: int = 0, batch_size: int = 4, lanes: int = 0
) -> StreamSpec:
    sampler = DeterministicSampler(read_manifest(records), "train", seed=7)
    return StreamSpec(records, sampler, EPOCHS, start, batch_size, workers, lanes or workers)


def batches_through_ray(
    spec: StreamSpec, streams: list[RankStream] | None = None
) -> list[list[Batch]]:
    """Each rank's batches, as its worker gets them; all ranks read at the same time."""
    streams = streams or open_stream(spec)
    with ThreadPoolExecutor(spec.world_size) as pool:
        return list(pool.map(lambda one: list(one.read_batches(spec)), streams))


def batches_in_process(spec: StreamSpec) -> list[list[Batch]]:
    """The batches that each rank should get."""
    return [list(local_batches(spec, rank)) for rank in range(spec.world_size)]


def assert_same_batches(found: list[list[Batch]], expected: list[list[Batch]]) -> None:
    assert [[b.position for b in rank] for rank in found] == [
        [b.position for b in rank] for rank in expected
    ]
    for mine, theirs in zip(chain(*found), chain(*expected), strict=True):
        assert (mine.ids, mine.epochs) == (theirs.ids, theirs.epochs)
        assert np.array_equal(mine.image, theirs.image)
        assert np.array_equal(mine.mask, theirs.mask)


@pytest.fixture
def large_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records do not fit the object store."""
    monkeypatch.setattr(stream, "OBJECT_STORE_FRACTION", 0.0)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_rank_gets_its_part_of_every_step(records: str, workers: int) -> None:
    spec = make_spec(records, workers)
    assert stream.fits_object_store(spec)
    splits = StreamDataConfig().configure({"train": spec.with_world_size(1)}, workers)
    through_ray = batches_through_ray(spec, [split["train"] for split in splits])
    assert_same_batches(through_ray, batches_in_process(spec))


@pytest.mark.parametrize(("workers", "lanes"), [(1, 1), (2, 2), (3, 2), (2, 3)])
def test_records_too_large_for_memory_are_read_for_each_visit(
    records: str, workers: int, lanes: int, large_records: None
) -> None:
    """Also by more workers than lanes, which share them, and by fewer."""
    spec = make_spec(records, workers, lanes=lanes)
    assert not stream.fits_object_store(spec)
    assert_same_batches(batches_through_ray(spec), batches_in_process(spec))


def test_one_execution_follows_another(records: str) -> None:
    """Of two shards each; a feed forgets the visits that its ranks have taken."""
    spec = make_spec(records, workers=2)
    visits = list(shard_visits(spec, (0, 1)))
    assert len(visits) > 8
    feed = ray.remote(StreamedShards).options(max_concurrency=3).remote(spec, (0, 1), 2)
    streams = [RankStream(feed, rank, keeps=False) for rank in (0, 1)]
    assert_same_batches(batches_through_ray(spec, streams), batches_in_process(spec))
    assert ray.get(feed.num_held.remote()) == 0


def test_the_ranks_of_each_node_have_a_feed(records: str, large_records: None) -> None:
    node = ray.get_runtime_context().get_node_id()
    spec = make_spec(records, workers=3)
    streams = open_stream(spec, [node, "e" * 56, node])
    assert streams[0].feed == streams[2].feed != streams[1].feed
    assert_same_batches(batches_through_ray(spec, streams), batches_in_process(spec))


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
    full = make_spec(records, workers=2)
    later = dataclasses.replace(full, start=5 * full.global_batch_size)
    rest = [rank[5:] for rank in batches_in_process(full)]
    assert_same_batches(batches_through_ray(later), rest)
