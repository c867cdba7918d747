"""Batch inference with threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from segan.errors import RejectedError, StorageError
from segan.inference.pipeline import ImageSize, Row, run_image_task
from segan.inference.predictor import Predictor
from tests.inference.models import untrained_predictor

BATCH = 3


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return untrained_predictor((0, 1), evaluation={"batch_size": BATCH})


def random_image(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in rng.integers(40, 120, 2))
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@dataclass
class RandomImageTask:
    """Items are seeds; those in `broken` are rejected, those in `unwritable` fail."""

    broken: tuple[int, ...] = ()
    unwritable: tuple[int, ...] = ()
    read_items: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, item: int) -> Image.Image:
        with self.lock:
            self.read_items.append(item)
        if item in self.broken:
            raise RejectedError(f"{item}: broken")
        return random_image(item)

    def process(self, predictor: Predictor, item: int, maps: Tensor, size: ImageSize) -> Row:
        if item in self.unwritable:
            raise StorageError(f"{item}: no room")
        return {"id": item, "maps": maps.numpy(), "size": size}

    def on_error(self, item: int, error: RejectedError) -> Row:
        return {"id": item, "error": str(error)}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 11])
def test_each_image_gets_its_own_maps_in_order(predictor: Predictor, count: int) -> None:
    rows = list(run_image_task(predictor, range(count), RandomImageTask(), threads=3))
    assert [row["id"] for row in rows] == list(range(count))
    for seed, row in enumerate(rows):
        image = random_image(seed)
        alone = predictor.predict_proba(predictor.preprocess(image)[None])[0]
        # Independent of the batch, except for rounding in the logistic.
        np.testing.assert_allclose(row["maps"], alone.numpy(), rtol=1e-6)
        assert row["size"] == image.size


@pytest.mark.parametrize("broken", [(0,), (1, 2), (3, 4, 5), tuple(range(7))])
def test_rejects_keep_their_positions(predictor: Predictor, broken: tuple[int, ...]) -> None:
    rows = list(run_image_task(predictor, range(7), RandomImageTask(broken)))
    assert [row["id"] for row in rows] == list(range(7))
    assert tuple(row["id"] for row in rows if "error" in row) == broken


def test_an_error_of_the_task_ends_the_iteration(predictor: Predictor) -> None:
    with pytest.raises(StorageError, match="5: no room"):
        list(run_image_task(predictor, range(1000), RandomImageTask(unwritable=(5,))))


def test_prefetching_is_bounded(predictor: Predictor) -> None:
    drawn, work = [], RandomImageTask()

    def endless() -> Iterator[int]:
        while True:
            drawn.append(len(drawn))
            yield drawn[-1]

    rows = run_image_task(predictor, endless(), work)
    for _ in range(4 * BATCH):
        next(rows)
    # When the last of the 12 came, two batches were being processed and two being read.
    assert len(work.read_items) <= len(drawn) <= 12 + 4 * BATCH
    rows.close()
