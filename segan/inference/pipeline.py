"""Many images through a model: reading, segmenting and finishing side by side.

Threads read and decode the images to come and finish those that were segmented, while batches of
frames go through the network. Pillow, zlib, the network and storage leave Python's lock alone, so
all of it happens at the same time. What is in memory does not grow with the number of images: a few
batches of frames and maps, and each thread's one image.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from segan.data.archive.images import RejectedError
from segan.inference.predictor import Predictor

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
Row = dict[str, Any]  # plain values, which can travel as JSON
ImageSize = tuple[int, int]


CPU_BATCH_SIZE = (
    4  # frames at once: their activations stay near the core, where 25 take 1.3 times as long
)


class ImageTask(Protocol[Item_contra]):
    """What is to be done with each image; called from threads, and sent to workers."""

    def read(self, item: Item_contra) -> Image.Image:
        """The image; raises RejectedError where it cannot be used."""

    def process(
        self, predictor: Predictor, item: Item_contra, maps: Tensor, size: ImageSize
    ) -> Row:
        """What becomes of an image, by its maps [members, H, W] and its size (width, height)."""

    def on_error(self, item: Item_contra, error: RejectedError) -> Row:
        """What becomes of an image that `read` refused; may raise the error."""


def run_image_task(
    predictor: Predictor, items: Iterable[Item], task: ImageTask[Item], threads: int = 0
) -> Iterator[Row]:
    """What `work` makes of each item, in the items' order.

    Args:
        threads: that read and finish; 0 for one a core.

    Raises:
        StorageError, RejectedError: what `work` raises ends everything.
    """
    batch = predictor.members[0].config.evaluation.batch_size
    if not torch.cuda.is_available():
        batch = min(batch, CPU_BATCH_SIZE)

    def load(item: Item) -> tuple[Tensor, ImageSize] | RejectedError:
        try:
            image = task.read(item)
        except RejectedError as error:
            return error
        return predictor.preprocess(image), image.size

    def submit(item: Item) -> tuple[Item, Future[tuple[Tensor, ImageSize] | RejectedError]]:
        return item, pool.submit(load, item)

    # Of torch each of these threads takes one of its own; the network has the cores.
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, "segan", torch.set_num_threads, (1,))
    left = iter(items)
    loading = deque(submit(item) for item in itertools.islice(left, 2 * batch))
    finishing: deque[Future[Row]] = deque()
    try:
        while loading:
            loaded = [
                (item, future.result())
                for item, future in (loading.popleft() for _ in range(min(batch, len(loading))))
            ]
            loading.extend(submit(item) for item in itertools.islice(left, batch))
            frames = [one[0] for _, one in loaded if not isinstance(one, RejectedError)]
            maps = iter(predictor.predict_proba(torch.stack(frames)) if frames else ())
            for item, one in loaded:
                if isinstance(one, RejectedError):
                    finishing.append(pool.submit(task.on_error, item, one))
                else:
                    finishing.append(pool.submit(task.process, predictor, item, next(maps), one[1]))
            while len(finishing) > batch:
                yield finishing.popleft().result()
        while finishing:
            yield finishing.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
