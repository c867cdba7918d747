"""The order of the samples: each row once per epoch, any start, and what it depends on."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segan.data.records.format import Manifest, Shard, shard_prefix
from segan.data.stream.batches import StreamSpec, read_batches
from segan.data.stream.sampler import DeterministicSampler
from segan.errors import UsageError

Row = tuple[int, int, str]  # epoch, position, id
LoadTable = Callable[[Shard], pa.Table]
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)
SEEDS = st.integers(0, 3)
SMALL = st.integers(1, 4)


def make_sampler(sizes: list[int], seed: int = 0) -> DeterministicSampler:
    shards = tuple(
        Shard(
            name=f"{shard_prefix('train', i, len(sizes))}-{0:016x}.parquet",
            num_rows=rows,
            bytes=0,
            sha256="",
            content_digest="",
        )
        for i, rows in enumerate(sizes)
    )
    manifest = Manifest(
        height=1,
        width=1,
        classes=1,
        splits={"train": shards},
        num_inputs=0,
        num_rejects=0,
        source="",
        fingerprint="",
    )
    return DeterministicSampler(manifest, "train", seed)


def load(shard: Shard) -> pa.Table:
    """Rows named after their shard and index; the pixels are the index."""
    pixels = [bytes([row]) for row in range(shard.num_rows)]
    return pa.table(
        {
            "id": [f"{shard.name}/{row}" for row in range(shard.num_rows)],
            "image": pa.array([3 * pixel for pixel in pixels], pa.binary(3)),
            "mask": pa.array(pixels, pa.binary(1)),
            "original_width": pa.array([1] * shard.num_rows, pa.int32()),
        }
    )


def stream(
    sampler: DeterministicSampler, start: int, stop: int, load: LoadTable = load
) -> list[Row]:
    """The rows of the sequence, one at a time, in one lane."""
    epochs = stop // sampler.num_rows + 1
    spec = StreamSpec("records", sampler, epochs, start, 1, 1)
    batches = itertools.islice(read_batches(spec, 0, lambda part: load(part.shard)), stop - start)
    return [(b.epochs[0], b.position, b.ids[0]) for b in batches]


@given(SIZES, SEEDS, SMALL)
def test_each_epoch_holds_each_row_once(sizes: list[int], seed: int, epochs: int) -> None:
    one = make_sampler(sizes, seed)
    every = sorted(
        f"{shard.name}/{i}" for shard in one.manifest.shards("train") for i in range(shard.num_rows)
    )
    rows = stream(one, 0, epochs * one.num_rows)
    assert [row[1] for row in rows] == list(range(epochs * one.num_rows))
    for epoch in range(epochs):
        part = rows[epoch * one.num_rows : (epoch + 1) * one.num_rows]
        assert {row[0] for row in part} == {epoch}
        assert sorted(row[2] for row in part) == every


@given(SIZES, SEEDS, st.integers(0, 60), st.integers(0, 60))
def test_a_later_start_gives_the_rest(sizes: list[int], seed: int, start: int, length: int) -> None:
    one = make_sampler(sizes, seed)
    assert stream(one, start, start + length) == stream(one, 0, start + length)[start:]


@given(SIZES, SEEDS)
def test_rows_keep_their_pixels(sizes: list[int], seed: int) -> None:
    one = make_sampler(sizes, seed)
    spec = StreamSpec("records", one, 1, 0, one.num_rows, 1)
    (batch,) = read_batches(spec, 0, lambda part: load(part.shard))
    places = [int(name.rsplit("/")[-1]) for name in batch.ids]
    assert batch.image[:, 0, 0].tolist() == [[place] * 3 for place in places]
    assert batch.mask.ravel().tolist() == places


# The order

MANY = [16, 16, 16, 16]


def order(rows: list[Row]) -> list[str]:
    return [row[2] for row in rows]


def epochs_of(seed: int) -> Iterator[list[str]]:
    one = make_sampler(MANY, seed)
    for epoch in range(3):
        yield order(stream(one, epoch * one.num_rows, (epoch + 1) * one.num_rows))


def test_order_depends_on_epoch_and_seed() -> None:
    orders = [tuple(found) for seed in range(3) for found in epochs_of(seed)]
    assert len(set(orders)) == 9
    assert list(epochs_of(1)) == list(epochs_of(1))


def test_shards_and_their_rows_are_shuffled() -> None:
    """Both the first shard and the order within a shard differ."""
    first, second = (list(epochs_of(0))[i] for i in (0, 1))
    name = shard_prefix("train", 2, 4)
    assert [row for row in first if row.startswith(name)] != [
        row for row in second if row.startswith(name)
    ]
    assert len({found[0].split("/")[0] for seed in range(6) for found in epochs_of(seed)}) == 4


def test_positions_in_an_epoch_are_uniform() -> None:
    """Over many epochs the mean position of each row is the middle."""
    one, epochs = make_sampler([8], 0), 200
    places: dict[str, list[int]] = {}
    for epoch, position, name in stream(one, 0, epochs * 8):
        places.setdefault(name, []).append(position - epoch * 8)
    means = [np.mean(found) for found in places.values()]
    assert len(means) == 8
    assert np.abs(np.array(means) - 3.5).max() < 4 * np.sqrt(63 / 12 / epochs)


def test_order_does_not_depend_on_the_order_in_the_manifest() -> None:
    """Shards listed in another order give the same stream."""
    one = make_sampler(MANY, 5)
    shards = one.manifest.splits["train"]
    turned = DeterministicSampler(
        one.manifest.model_copy(update={"splits": {"train": shards[::-1]}}), "train", 5
    )

    def backwards(shard: Shard) -> pa.Table:
        table = load(shard)
        return table.take(pa.array(range(shard.num_rows)[::-1]))

    assert stream(turned, 0, 150, backwards) == stream(one, 0, 150)


# StreamSpec


@given(SIZES, st.integers(1, 5), st.integers(1, 9), SMALL, st.integers(0, 30))
def test_stream_has_full_steps(
    sizes: list[int], epochs: int, batch: int, workers: int, steps: int
) -> None:
    one, taken = make_sampler(sizes), batch * workers
    if taken > one.num_rows:
        with pytest.raises(UsageError, match=f"training.batch_size {batch} with {workers} worker"):
            StreamSpec("records", one, epochs, 0, batch, workers)
        return
    last = one.num_rows * epochs
    start = min(steps * taken, last - last % taken)
    plan = StreamSpec("records", one, epochs, start, batch, workers)
    assert plan.global_batch_size == taken
    assert (plan.stop - plan.start) % taken == 0
    assert start <= plan.stop <= last
    assert last - plan.stop < taken
    assert plan.stop == StreamSpec("records", one, epochs, 0, batch, workers).stop


def test_too_large_batch() -> None:
    with pytest.raises(UsageError) as caught:
        StreamSpec("records", make_sampler([5, 3]), 1, 0, 3, 3)
    assert str(caught.value) == (
        "training.batch_size 3 with 3 workers needs 9 images per step, but split 'train' has 8; "
        "use a smaller batch size"
    )


def test_batch_of_the_size_of_the_split() -> None:
    plan = StreamSpec("records", make_sampler([5, 3]), 4, 0, 4, 2)
    assert (plan.start, plan.stop) == (0, 32)
