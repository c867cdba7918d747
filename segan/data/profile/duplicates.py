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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

HASH_SIZE = 16  # frequencies along each axis
HASH_BYTES = HASH_SIZE * HASH_SIZE // 8
MAX_DISTANCE = 46  # of 255 bits; docs/measurements.md has the distances of ISIC 2017
_MAX_LOW_DISTANCE = 16  # of the 64 lowest frequencies, which differ least between copies
TASK_SIZE = 16_384, 262_144  # rows and columns of a task: 9 MB, minutes of one core at most
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


@dataclass(frozen=True)
class CompareTask:
    """A tile of the comparison of two splits: some rows with some columns.

    Attributes:
        hashes: of the rows, uint8 [N, HASH_BYTES]; compared in all orientations.
        others: of the columns, uint8 [M, HASH_BYTES].
        rows, others_rows: their rows of the table, int64 [N] and [M].
        limit: number of pairs to return, the nearest.
    """

    hashes: np.ndarray
    others: np.ndarray
    rows: np.ndarray
    others_rows: np.ndarray
    max_distance: int
    limit: int


Run = Callable[[Sequence[CompareTask]], Iterable[np.ndarray]]


def find_duplicates(
    stats: pa.Table,
    max_distance: int = MAX_DISTANCE,
    limit: int = 1000,
    run: Run = lambda tasks: map(compare_hashes, tasks),
) -> list[DuplicatePair]:
    """Finds pairs of images in different splits that show the same photograph.

    Mirrored and rotated copies are found too. Every image is compared with every image of the other
    splits: 80,000 images against 20,000 take about 20 s on one core and 120 MiB.

    Args:
        stats: rows of `segan.data.profile.image_stats.SCHEMA` with a column `split`.
        max_distance: of a pair, in bits of 255.
        limit: number of pairs; the nearest are returned.
        run: runs `compare_hashes` on tasks, in any order.

    Returns:
        Pairs by distance, then by id. The splits of a pair are in the table's order.
    """
    hashes = np.frombuffer(b"".join(stats["hash"].to_pylist()), np.uint8).reshape(-1, HASH_BYTES)
    names = stats["split"].to_pylist()
    rows = {split: _split_rows(names, split) for split in dict.fromkeys(names)}
    tasks = [
        CompareTask(hashes[top], hashes[left], top, left, max_distance, limit)
        for first, second in itertools.combinations(rows.values(), 2)
        for top in _tiles(first, TASK_SIZE[0])
        for left in _tiles(second, TASK_SIZE[1])
    ]
    found = np.empty((0, 3), np.int64)
    for pairs in run(tasks):
        found = _keep_nearest(np.concatenate([found, pairs]), limit)
    ids = stats["id"].to_pylist()
    pairs_found = (
        DuplicatePair(ids[i], names[i], ids[j], names[j], distance)
        for distance, i, j in found.tolist()
    )
    return sorted(pairs_found, key=lambda pair: (pair.distance, pair.id, pair.other_id))


def compare_hashes(task: CompareTask) -> np.ndarray:
    """The nearest pairs of a task as rows (distance, row, other row), int64 [K, 3]."""
    found = np.empty((0, 3), np.int64)
    others = task.others.view(np.uint64)
    for orientation in _orientations(_unpack(task.hashes)):
        rotated = _words(orientation)
        for top in range(0, len(rotated), _BLOCK[0]):
            for left in range(0, len(others), _BLOCK[1]):
                rows, columns = slice(top, top + _BLOCK[0]), slice(left, left + _BLOCK[1])
                distance, i, j = _find_close(rotated[rows], others[columns], task.max_distance)
                if len(distance):
                    close = [distance, task.rows[rows][i], task.others_rows[columns][j]]
                    pairs = np.concatenate([found, np.stack(close, 1)])
                    found = _keep_nearest(pairs, task.limit)
    return found


def _find_close(
    rows: np.ndarray, columns: np.ndarray, max_distance: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances, rows and columns of the pairs of hashes, uint64 [N, 4], within `max_distance`."""
    low = np.bitwise_count(rows[:, None, 0] ^ columns[None, :, 0])
    i, j = np.divmod(np.flatnonzero(low <= _MAX_LOW_DISTANCE), len(columns))
    distance = np.bitwise_count(rows[i] ^ columns[j]).sum(1, dtype=np.int64)
    close = distance <= max_distance
    return distance[close], i[close], j[close]


def _tiles(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


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


def _unpack(packed: np.ndarray) -> np.ndarray:
    half = HASH_SIZE // 2
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
