"""Batch inference on many images, with reading, segmentation and post-processing in parallel.

Threads read and decode the next images and post-process the segmented ones, while batches of frames
go through the network. Pillow, zlib, the network and storage release the GIL, so all of it runs in
parallel. Memory does not grow with the number of images: it holds a few batches of frames and maps,
and one image per thread.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from segan.errors import RejectedError
from segan.inference.predictor import Predictor
from segan.utils.resources import usable_cpus

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
Row = dict[str, Any]  # JSON-serialisable values
ImageSize = tuple[int, int]
_Loaded = tuple[Tensor, ImageSize] | RejectedError  # a frame and its image's size

# Frames per batch on a CPU: the activations fit its caches; a batch of 25 takes 1.3 times as long.
CPU_BATCH_SIZE = 4


class ImageTask(Protocol[Item_contra]):
    """The work for each image; called from several threads, and pickled to be sent to workers."""

    def read(self, item: Item_contra) -> Image.Image:
        """The image of an item; raises RejectedError if it is unusable."""

    def process(
        self, predictor: Predictor, item: Item_contra, maps: Tensor, size: ImageSize
    ) -> Row:
        """The row of an image, from its maps [members, H, W] and its size (width, height)."""

    def on_error(self, item: Item_contra, error: RejectedError) -> Row:
        """The row of an image that `read` rejected; may raise the error instead."""


def run_image_task(
    predictor: Predictor, items: Iterable[Item], task: ImageTask[Item], threads: int = 0
) -> Iterator[Row]:
    """The row of each item, in the order of the items.

    Args:
        threads: for reading and post-processing; 0 for one per core.

    Raises:
        StorageError, RejectedError: raised by the task; it ends the iteration.
    """
    batch = predictor.members[0].config.evaluation.batch_size
    if not torch.cuda.is_available():
        batch = min(batch, CPU_BATCH_SIZE)

    def load(item: Item) -> _Loaded:
        try:
            image = task.read(item)
        except RejectedError as error:
            return error
        return predictor.preprocess(image), image.size

    def submit(item: Item) -> tuple[Item, Future[_Loaded]]:
        return item, pool.submit(load, item)

    # Torch uses one thread in each of these; all cores are left to the network.
    pool = ThreadPoolExecutor(threads or usable_cpus(), "segan", torch.set_num_threads, (1,))
    remaining = iter(items)
    loading = deque(submit(item) for item in itertools.islice(remaining, 2 * batch))
    finishing: deque[Future[Row]] = deque()
    try:
        while loading:
            loaded = [
                (item, future.result())
                for item, future in (loading.popleft() for _ in range(min(batch, len(loading))))
            ]
            loading.extend(submit(item) for item in itertools.islice(remaining, batch))
            frames = [result[0] for _, result in loaded if not isinstance(result, RejectedError)]
            maps = iter(predictor.predict_proba(torch.stack(frames)) if frames else ())
            for item, result in loaded:
                if isinstance(result, RejectedError):
                    finishing.append(pool.submit(task.on_error, item, result))
                else:
                    size = result[1]
                    finishing.append(pool.submit(task.process, predictor, item, next(maps), size))
            while len(finishing) > batch:
                yield finishing.popleft().result()
        while finishing:
            yield finishing.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
