"""Near-duplicates: images of different splits that show the same picture.

The hash is the signs of an image's 256 lowest frequencies but the mean (a perceptual hash as in
Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010, with 16 x 16
signs of the cosine transform instead of 8 x 8): brightness, contrast, colour, size and compression
hardly move them. Mirroring a picture turns the signs of its odd frequencies and turning it by 90
degrees also swaps their axes, so the hashes of mirrored and turned copies follow from the hash.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

HASH_SIZE = 16  # frequencies along each axis
HASH_BYTES = HASH_SIZE * HASH_SIZE // 8
MAX_DISTANCE = 46  # of 255 bits; docs/measurements.md has the distances of ISIC 2017
_MAX_LOW_DISTANCE = (
    16  # of the 64 lowest bits, looked at first: they differ the least between copies
)
_BLOCK = 256, 4096  # rows and columns compared at a time: 8 MiB of differences
_MIN_AMPLITUDE = 1e-3  # grey levels; a wave below it is rounding

_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)


class DuplicatePair(NamedTuple):
    """Two images of different splits and the number of bits, of 255, by which they differ."""

    id: str
    split: str
    other_id: str
    other_split: str
    distance: int


def hash_image(image: np.ndarray) -> bytes:
    """The hash of an image, uint8 [H, W, 3] of any size: 32 bytes, the lowest frequencies first.

    The first of the four 64-bit words holds the signs of the 8 x 8 lowest frequencies.
    """
    grey = image @ _LUMA_WEIGHTS
    waves = _cosine_basis(grey.shape[0]) @ grey @ _cosine_basis(grey.shape[1]).T
    signs = waves > _MIN_AMPLITUDE * grey.size
    signs[0, 0] = False  # the mean
    return _pack(signs[None])[0].tobytes()


def find_duplicates(
    stats: pa.Table, max_distance: int = MAX_DISTANCE, limit: int = 1000
) -> list[DuplicatePair]:
    """Pairs of images in different splits that show the same picture, mirrored and turned included.

    Every image is compared with every one of the other splits: 100,000 images in splits of 80,000
    and 20,000 take about 20 s on one core and 120 MiB.

    Args:
        traits: rows of `segan.data.profile.image_stats.SCHEMA` with a column `split`.
        near: most bits, of 255, by which twins differ.
        most: pairs to list; the nearest where there are more.

    Returns:
        The nearest first, then by id; the splits of a pair in the table's order.
    """
    signs = _unpack(stats["hash"].to_pylist())
    words = _words(signs)
    names = stats["split"].to_pylist()
    rows = {split: _split_rows(names, split) for split in dict.fromkeys(names)}
    found = np.empty((0, 3), np.int64)
    for first, second in itertools.combinations(rows.values(), 2):
        for pairs in _compare_hashes(signs[first], words[second], max_distance):
            pairs[:, 1], pairs[:, 2] = first[pairs[:, 1]], second[pairs[:, 2]]
            found = _keep_nearest(np.concatenate([found, pairs]), limit)
    ids = stats["id"].to_pylist()
    duplicates_found = (
        DuplicatePair(ids[i], names[i], ids[j], names[j], distance)
        for distance, i, j in found.tolist()
    )
    return sorted(duplicates_found, key=lambda twin: (twin.distance, twin.id, twin.other_id))


def _compare_hashes(
    signs: np.ndarray, words: np.ndarray, max_distance: int
) -> Iterator[np.ndarray]:
    """Rows int64 [K, 3] of (differing bits, row of one, row of words), never none, at most `near`.

    Args:
        one: signs bool [N, SIDE, SIDE], which are compared in all their positions.
        words: uint64 [M, 4].
    """
    for orientation in _orientations(signs):
        rotated = _words(orientation)
        for top in range(0, len(rotated), _BLOCK[0]):
            rows = rotated[top : top + _BLOCK[0]]
            for left in range(0, len(words), _BLOCK[1]):
                columns = words[left : left + _BLOCK[1]]
                low = np.bitwise_count(rows[:, None, 0] ^ columns[None, :, 0])
                i, j = np.divmod(np.flatnonzero(low <= _MAX_LOW_DISTANCE), len(columns))
                distance = np.bitwise_count(rows[i] ^ columns[j]).sum(1, dtype=np.int64)
                close = distance <= max_distance
                if close.any():
                    yield np.stack([distance, i + top, j + left], 1)[close]


def _keep_nearest(pairs: np.ndarray, limit: int) -> np.ndarray:
    """The nearest of rows (distance, i, j), each pair once."""
    order = np.lexsort(pairs.T[::-1])
    _, first = np.unique(pairs[order, 1:], axis=0, return_index=True)
    return pairs[order][np.sort(first)[:limit]]


def _orientations(signs: np.ndarray) -> Iterator[np.ndarray]:
    """The signs of the eight pictures that mirroring and turning by 90 degrees make of each."""
    odd = np.arange(HASH_SIZE) % 2 == 1
    for transposed, down, across in itertools.product((False, True), repeat=3):
        oriented = signs.transpose(0, 2, 1) if transposed else signs
        yield oriented ^ (down & odd[:, None]) ^ (across & odd[None, :])


def _pack(signs: np.ndarray) -> np.ndarray:
    """Signs bool [N, SIDE, SIDE] as bytes [N, HASH_BYTES], block by block of 8 x 8."""
    half = HASH_SIZE // 2
    blocks = signs.reshape(-1, 2, half, 2, half).transpose(0, 1, 3, 2, 4)
    return np.packbits(blocks.reshape(len(signs), HASH_SIZE * HASH_SIZE), axis=1)


def _unpack(hashes: list[bytes]) -> np.ndarray:
    half = HASH_SIZE // 2
    packed = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, HASH_BYTES)
    blocks = np.unpackbits(packed, axis=1).reshape(-1, 2, 2, half, half).view(bool)
    return blocks.transpose(0, 1, 3, 2, 4).reshape(-1, HASH_SIZE, HASH_SIZE)


def _words(signs: np.ndarray) -> np.ndarray:
    return _pack(signs).view(np.uint64)


def _split_rows(names: list[str], split: str) -> np.ndarray:
    return np.array([row for row, name in enumerate(names) if name == split])


@functools.lru_cache(maxsize=64)
def _cosine_basis(pixels: int) -> np.ndarray:
    """The first `SIDE` cosine waves over a row of pixels, float32 [SIDE, pixels]."""
    places = (np.arange(pixels) + 0.5) * np.pi / pixels
    return np.cos(np.arange(HASH_SIZE)[:, None] * places[None, :]).astype(np.float32)
