"""Lanes: each row once an epoch, the same batches for any number of workers, and few shards."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import assume, given
from hypothesis import strategies as st

from segan.data.stream.batches import (
    SHARDS_AHEAD,
    Batch,
    StreamSpec,
    read_batches,
    shard_visits,
    visit_ranks,
)
from segan.data.stream.lanes import Lanes, ShardSlice, Visit
from tests.data.stream.test_sampler import SEEDS, SIZES, SMALL, load, make_sampler

WORKERS = (1, 2, 3, 5)


def make_spec(
    sizes: list[int], seed: int, lanes: int, batch: int, epochs: int, workers: int
) -> StreamSpec:
    sampler = make_sampler(sizes, seed)
    assume(batch * max(lanes, workers) <= sampler.num_rows)
    return StreamSpec("records", sampler, epochs, 0, batch, workers, lanes)


def read_all(spec: StreamSpec) -> list[Batch]:
    """The batches of all ranks by position."""
    ranks = (read_batches(spec, rank, load_visit) for rank in range(spec.world_size))
    return sorted((batch for rank in ranks for batch in rank), key=lambda batch: batch.position)


def load_visit(part: ShardSlice) -> pa.Table:
    return load(part.shard)


def content(batch: Batch) -> tuple[object, ...]:
    return batch.position, batch.epochs, batch.ids, batch.image.tobytes(), batch.mask.tobytes()


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 30), st.integers(0, 100))
def test_positions_are_counted_by_lane(lanes: int, batch: int, rows: int, position: int) -> None:
    dealt = Lanes(lanes, batch, rows)
    before = Counter(dealt.lane(p) for p in range(position))
    assert dealt.rows_before(position).tolist() == [before[lane] for lane in range(lanes)]
    assert dealt.offset(position) == before[dealt.lane(position)]


@given(SIZES, SEEDS, SMALL, SMALL, SMALL)
def test_each_epoch_has_each_row_once(
    sizes: list[int], seed: int, lanes: int, batch: int, epochs: int
) -> None:
    spec = make_spec(sizes, seed, lanes, batch, epochs + 1, 1)
    seen = Counter(row for b in read_all(spec) for row in zip(b.epochs, b.ids, strict=True))
    ids = {
        f"{s.name}/{i}" for s in spec.sampler.manifest.shards("train") for i in range(s.num_rows)
    }
    assert all(seen[epoch, name] == 1 for epoch in range(epochs) for name in ids)
    assert set(seen.values()) == {1}


@given(SIZES, SEEDS, SMALL, SMALL, st.lists(st.sampled_from(WORKERS), min_size=1, max_size=9))
def test_any_number_of_workers_takes_the_same_batches(
    sizes: list[int], seed: int, lanes: int, batch: int, workers: list[int]
) -> None:
    """The number changes after each step, as after faults; one number says where to go on."""
    whole = make_spec(sizes, seed, lanes, batch, 4, 1)
    expected = [content(b) for b in read_all(whole)]
    found: list[tuple[object, ...]] = []
    start = 0
    for number in workers:
        if batch * number > whole.sampler.num_rows:
            continue
        spec = dataclasses.replace(whole, start=start, world_size=number)
        if spec.is_exhausted:
            break
        found += [content(next(read_batches(spec, rank, load_visit))) for rank in range(number)]
        start += spec.global_batch_size
    assert found == expected[: len(found)]


@given(SIZES, SEEDS, SMALL, SMALL, st.integers(0, 20))
def test_a_later_start_gives_the_rest(
    sizes: list[int], seed: int, lanes: int, batch: int, steps: int
) -> None:
    spec = make_spec(sizes, seed, lanes, batch, 3, lanes)
    start = min(steps * spec.global_batch_size, spec.stop)
    later = dataclasses.replace(spec, start=start)
    whole = [content(b) for b in read_all(spec)]
    assert [content(b) for b in read_all(later)] == whole[start // batch :]


@given(SIZES, SEEDS, SMALL)
def test_one_lane_is_the_plain_order(sizes: list[int], seed: int, batch: int) -> None:
    """That of runs that were begun before there were lanes."""
    spec = make_spec(sizes, seed, 1, batch, 3, 1)
    found = [row for b in read_all(spec) for row in zip(b.epochs, b.ids, strict=True)]
    expected: list[tuple[int, str]] = []
    for epoch in range(3):
        for shard in spec.sampler.epoch_order(epoch).shards:
            ids = load(shard)["id"].to_pylist()
            order = spec.sampler.row_order(epoch, ids)
            expected += [(epoch, ids[row]) for row in order]
    assert found == expected[: len(found)]


@given(SIZES, SEEDS, SMALL, SMALL)
def test_a_worker_reads_its_own_part_of_each_epoch(
    sizes: list[int], seed: int, lanes: int, batch: int
) -> None:
    """All together read each shard once an epoch, and one more for each border of two lanes."""
    spec = make_spec(sizes, seed, lanes, batch, 3, lanes)
    by_rank = [list(visits_of(spec, rank)) for rank in range(lanes)]
    for rank, visits in enumerate(by_rank):
        assert {visit.lane for visit in visits} <= {rank}
        assert len(visits) == len(set(visits))  # a shard is not read again for what is left of it
    reads = Counter(visit.epoch for visits in by_rank for visit in visits)
    assert all(number <= len(sizes) + lanes - 1 for number in reads.values())


def visits_of(spec: StreamSpec, rank: int) -> list[Visit]:
    return [part.visit for _, part in shard_visits(spec, (rank,))]


@given(SIZES, SEEDS, SMALL, SMALL, st.sampled_from(WORKERS))
def test_a_visit_knows_its_ranks(
    sizes: list[int], seed: int, lanes: int, batch: int, workers: int
) -> None:
    spec = make_spec(sizes, seed, lanes, batch, 3, workers)
    ranks = range(workers)
    expected: dict[Visit, set[int]] = {}
    for rank in ranks:
        for visit in visits_of(spec, rank):
            expected.setdefault(visit, set()).add(rank)
    found = {
        part.visit: visit_ranks(spec, spec.plan, position, part.visit)
        for position, part in shard_visits(spec, ranks)
    }
    assert found == expected


@given(SIZES, SEEDS, SMALL, SMALL, st.sampled_from(WORKERS))
def test_few_shards_are_loaded_ahead(
    sizes: list[int], seed: int, lanes: int, batch: int, workers: int
) -> None:
    spec = make_spec(sizes, seed, lanes, batch, 3, workers)
    loaded: list[Visit] = []
    needed: list[Visit] = []

    def counting(part: ShardSlice) -> pa.Table:
        loaded.append(part.visit)
        return load(part.shard)

    plan = spec.plan
    for b in read_batches(spec, 0, counting):
        needed += [p.visit for p in plan.slices(b.position) if p.visit not in needed]
        assert len(loaded) <= len(needed) + SHARDS_AHEAD
    assert loaded == needed == visits_of(spec, 0)


def test_a_batch_of_two_lanes_by_hand() -> None:
    """10 rows in 2 lanes of batches of 2: lane 0 takes 6 rows of epoch 0 and 4 of epoch 1."""
    spec = StreamSpec("records", make_sampler([4, 6]), 2, 0, 2, 2, lanes=2)
    lanes = Lanes(2, 2, 10)
    assert lanes.rows_before(10).tolist() == [6, 4]
    assert lanes.rows_before(20).tolist() == [10, 10]
    assert lanes.epoch_offsets(0).tolist() == [0, 6]
    assert lanes.epoch_offsets(1).tolist() == [-6, 0]
    starts = {e: spec.sampler.epoch_order(e).starts.tolist() for e in (0, 1)}
    rows = [
        (part.epoch, starts[part.epoch][order_index(spec, part)] + row)
        for position in range(0, 20, 2)
        for part in spec.plan.slices(position)
        for row in range(part.start, part.stop)
    ]
    assert rows == [
        *((0, row) for row in (0, 1, 6, 7, 2, 3, 8, 9, 4, 5)),
        *((1, row) for row in (4, 5, 0, 1, 6, 7, 2, 3, 8, 9)),
    ]


def order_index(spec: StreamSpec, part: ShardSlice) -> int:
    names = [shard.name for shard in spec.sampler.epoch_order(part.epoch).shards]
    return names.index(part.shard.name)


def test_offsets_are_exact_for_many_rows() -> None:
    dealt = Lanes(512, 25, 10_000_000)
    offsets = dealt.epoch_offsets(300)
    assert offsets.dtype == np.int64
    position = 300 * 10_000_000 // 25 * 25 + 25
    row = offsets[dealt.lane(position)] + dealt.offset(position)
    assert 0 <= row < 10_000_000
