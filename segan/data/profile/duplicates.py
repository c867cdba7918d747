"""Near-duplicates: images of different splits that show the same photograph.

They are found by a perceptual hash (Zauner, "Implementation and benchmarking of perceptual image
hash functions", 2010): the signs of the 16 x 16 lowest frequencies of the cosine transform without
the mean. Brightness, contrast, colour, size and compression change few of them. Mirroring inverts
the signs of odd frequencies and rotating by 90 degrees also transposes them, so the hashes of
mirrored and rotated copies are computed from the hash.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

HASH_SIZE = 16  # frequencies along each axis
HASH_BYTES = HASH_SIZE * HASH_SIZE // 8
MAX_DISTANCE = 46  # of 255 bits; docs/measurements.md has the distances of ISIC 2017
_MAX_LOW_DISTANCE = 16  # of the 64 lowest frequencies, which differ least between copies
_BLOCK = 256, 4096  # rows and columns compared at once: 8 MiB of differences
_MIN_AMPLITUDE = 1e-3  # grey levels; smaller amplitudes are rounding errors

_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class DuplicatePair:
    """Two images of different splits, and the number of bits, of 255, that differ."""

    id: str
    split: str
    other_id: str
    other_split: str
    distance: int


def hash_image(image: np.ndarray) -> bytes:
    """The hash of an image, uint8 [H, W, 3] of any size: 32 bytes.

    The first of the four 64-bit words holds the signs of the 8 x 8 lowest frequencies.
    """
    grey = image @ _LUMA_WEIGHTS
    waves = _cosine_basis(grey.shape[0]) @ grey @ _cosine_basis(grey.shape[1]).T
    signs = waves > _MIN_AMPLITUDE * grey.size
    signs[0, 0] = False  # the mean
    digest: bytes = _pack(signs[None])[0].tobytes()
    return digest


def find_duplicates(
    stats: pa.Table, max_distance: int = MAX_DISTANCE, limit: int = 1000
) -> list[DuplicatePair]:
    """Finds pairs of images in different splits that show the same photograph.

    Mirrored and rotated copies are found too. Every image is compared with every image of the other
    splits: 80,000 images against 20,000 take about 20 s on one core and 120 MiB.

    Args:
        stats: rows of `segan.data.profile.image_stats.SCHEMA` with a column `split`.
        max_distance: of a pair, in bits of 255.
        limit: number of pairs; the nearest are returned.

    Returns:
        Pairs by distance, then by id. The splits of a pair are in the table's order.
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
    pairs_found = (
        DuplicatePair(ids[i], names[i], ids[j], names[j], distance)
        for distance, i, j in found.tolist()
    )
    return sorted(pairs_found, key=lambda pair: (pair.distance, pair.id, pair.other_id))


def _compare_hashes(
    signs: np.ndarray, words: np.ndarray, max_distance: int
) -> Iterator[np.ndarray]:
    """Yields the pairs within `max_distance` as rows (distance, i, j), int64 [K, 3] with K > 0.

    Args:
        signs: bool [N, HASH_SIZE, HASH_SIZE]; image i, compared in all orientations.
        words: uint64 [M, 4]; image j.
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
    """The nearest `limit` of rows (distance, i, j), each pair once."""
    order = np.lexsort(pairs.T[::-1])
    _, first = np.unique(pairs[order, 1:], axis=0, return_index=True)
    return pairs[order][np.sort(first)[:limit]]


def _orientations(signs: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the signs of the eight mirrored and rotated versions of each image."""
    odd = np.arange(HASH_SIZE) % 2 == 1
    for transposed, down, across in itertools.product((False, True), repeat=3):
        oriented = signs.transpose(0, 2, 1) if transposed else signs
        yield oriented ^ (down & odd[:, None]) ^ (across & odd[None, :])


def _pack(signs: np.ndarray) -> np.ndarray:
    """Packs signs, bool [N, HASH_SIZE, HASH_SIZE], into bytes [N, HASH_BYTES] by 8 x 8 blocks."""
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
    """The lowest frequencies of the DCT-II, float32 [HASH_SIZE, pixels]."""
    phases = (np.arange(pixels) + 0.5) * np.pi / pixels
    return np.cos(np.arange(HASH_SIZE)[:, None] * phases[None, :]).astype(np.float32)
