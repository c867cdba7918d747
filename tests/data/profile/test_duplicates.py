"""Near-duplicates: copies are found, different images are not."""

import functools
import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from segan.data.profile import duplicates
from segan.data.profile.duplicates import (
    HASH_BYTES,
    MAX_DISTANCE,
    CompareTask,
    compare_hashes,
    find_duplicates,
    hash_image,
)
from segan.data.synthetic import generate_pair

SIZE = (180, 135)


@functools.cache
def synthetic_image(index: int) -> np.ndarray:
    return generate_pair(7, index, SIZE)[0]


def recompress(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


def resize(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((100, 75), Image.Resampling.BILINEAR))


def brighten(image: np.ndarray) -> np.ndarray:
    return (255 * (image / 255) ** 0.8).astype(np.uint8)


def warm_colours(image: np.ndarray) -> np.ndarray:
    return (image * np.array([1, 0.95, 0.85])).astype(np.uint8)


def crop(image: np.ndarray) -> np.ndarray:
    """Crops two columns and one row, and resizes to the original size."""
    return np.asarray(Image.fromarray(image[1:, :-2]).resize(SIZE, Image.Resampling.BILINEAR))


def mirror(image: np.ndarray) -> np.ndarray:
    return image[:, ::-1]


def rotate_180(image: np.ndarray) -> np.ndarray:
    return image[::-1, ::-1]


def rotate_90(image: np.ndarray) -> np.ndarray:
    return np.rot90(image)


def transpose(image: np.ndarray) -> np.ndarray:
    return image.transpose(1, 0, 2)


def make_table(**splits: list[bytes]) -> pa.Table:
    rows = [
        {"id": f"{split}{i}", "split": split, "hash": digest}
        for split, hashes in splits.items()
        for i, digest in enumerate(hashes)
    ]
    fields = {"id": pa.string(), "split": pa.string(), "hash": pa.binary(HASH_BYTES)}
    return pa.Table.from_pylist(rows, pa.schema(fields))


def flip_bits(digest: bytes, *bits: int) -> bytes:
    signs = np.unpackbits(np.frombuffer(digest, np.uint8))
    signs[list(bits)] ^= 1
    return np.packbits(signs).tobytes()


COPIES = [
    recompress,
    resize,
    brighten,
    warm_colours,
    crop,
    mirror,
    rotate_180,
    rotate_90,
    transpose,
]


@pytest.mark.parametrize("copy", COPIES, ids=lambda copy: copy.__name__)
def test_finds_copies_and_nothing_else(copy: Callable[[np.ndarray], np.ndarray]) -> None:
    train = [hash_image(synthetic_image(index)) for index in range(30)]
    test = [hash_image(copy(synthetic_image(index))) for index in range(20)]
    found = find_duplicates(make_table(train=train, test=test))
    assert {(pair.id, pair.other_id) for pair in found} == {
        (f"train{index}", f"test{index}") for index in range(20)
    }


def test_different_images_are_not_duplicates() -> None:
    hashes = [hash_image(synthetic_image(index)) for index in range(60)]
    assert find_duplicates(make_table(train=hashes[:30], test=hashes[30:])) == []


def test_images_of_one_split_are_not_compared() -> None:
    assert find_duplicates(make_table(train=[hash_image(synthetic_image(0))] * 3)) == []


def test_all_pairs_of_splits_are_compared() -> None:
    one = hash_image(synthetic_image(0))
    found = find_duplicates(make_table(train=[one], validation=[one], test=[one]))
    pairs = {(pair.split, pair.other_split) for pair in found}
    assert pairs == {("train", "validation"), ("train", "test"), ("validation", "test")}


def test_distance_and_its_limit() -> None:
    one = hash_image(synthetic_image(0))
    # Bits above the 64 low frequencies.
    at, beyond = range(64, 64 + MAX_DISTANCE), range(64, 65 + MAX_DISTANCE)
    found = find_duplicates(
        make_table(
            train=[one], test=[flip_bits(one, *beyond), flip_bits(one, 64), flip_bits(one, *at)]
        )
    )
    assert [(pair.other_id, pair.distance) for pair in found] == [
        ("test1", 1),
        ("test2", MAX_DISTANCE),
    ]


def test_limit_keeps_the_nearest() -> None:
    one = hash_image(synthetic_image(0))
    far = [flip_bits(one, *range(64, 64 + bits)) for bits in (9, 3, 5, 7, 1)]
    found = find_duplicates(make_table(train=[one], test=far), limit=3)
    assert [pair.distance for pair in found] == [1, 3, 5]


def test_blocks_cover_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = [hash_image(synthetic_image(index)) for index in range(11)]
    whole = find_duplicates(make_table(train=hashes, test=hashes[::-1]))
    monkeypatch.setattr(duplicates, "_BLOCK", (3, 4))
    assert find_duplicates(make_table(train=hashes, test=hashes[::-1])) == whole
    assert len(whole) == 11


def test_tasks_cover_all_pairs_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = [hash_image(synthetic_image(index)) for index in range(11)]
    table = make_table(train=hashes, validation=hashes[:5], test=hashes[::-1])
    whole = find_duplicates(table)
    nearest = find_duplicates(table, limit=4)
    monkeypatch.setattr(duplicates, "TASK_SIZE", (3, 4))
    sizes: list[tuple[int, int]] = []

    def backwards(tasks: Sequence[CompareTask]) -> Iterator[np.ndarray]:
        sizes.extend((len(task.hashes), len(task.others)) for task in tasks)
        return map(compare_hashes, tasks[::-1])

    assert find_duplicates(table, run=backwards) == whole
    assert find_duplicates(table, limit=4, run=backwards) == nearest
    assert len(whole) == 5 + 11 + 5
    assert set(sizes) <= {(rows, columns) for rows in (2, 3) for columns in (1, 2, 3, 4)}


def test_a_symmetric_image_is_one_pair() -> None:
    half = synthetic_image(3)[:, :90]
    one = hash_image(np.concatenate([half, half[:, ::-1]], 1))
    assert [pair.distance for pair in find_duplicates(make_table(train=[one], test=[one]))] == [0]


def test_uniform_images_have_the_same_hash() -> None:
    black, grey = (hash_image(np.full((135, 180, 3), level, np.uint8)) for level in (0, 200))
    assert black == grey == bytes(HASH_BYTES)


def test_empty_table() -> None:
    assert find_duplicates(make_table()) == []
