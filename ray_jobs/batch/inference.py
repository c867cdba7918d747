"""Something done to each of many images with a model at hand, over the cluster."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from segan import storage
from segan.inference.pipeline import ImageTask, Item, Row, run_image_task
from segan.inference.predictor import Predictor

IMAGES_PER_BLOCK = 100  # images that an actor is given at once, and that come back together
MAX_CONCURRENT_CALLS = 2  # blocks in an actor: while one ends, the next has begun


class ThreadSafePredictor(Predictor):
    """A model that several threads share."""

    _lock = threading.Lock()

    def predict_proba(self, frames: Tensor) -> Tensor:
        with self._lock:
            return super().predict_proba(frames)


class InferenceWorker:
    """An actor that holds the model and does its work to the images that it is given."""

    def __init__(
        self,
        model: str,
        threshold: float | None,
        tta: bool | None,
        task: ImageTask[Any],
        threads: int,
    ):
        storage.retry_access_checks()  # the command's own look at the model was before
        torch.set_num_threads(1)  # the cluster's CPUs are shared out among the actors
        self.predictor = ThreadSafePredictor.load(model, threshold, tta=tta)
        self.task, self.threads = task, threads

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[str]]:
        rows = run_image_task(self.predictor, block["item"], self.task, self.threads)
        return {"row": [json.dumps(row) for row in rows]}


def map_images(
    task: ImageTask[Item],
    items: Sequence[Item],
    model: str,
    threshold: float | None = None,
    tta: bool | None = None,
) -> Iterator[Row]:
    """What `segan.inference.pipeline.segment` gives of every item, as the cluster finishes them.

    One actor a GPU, or a CPU where there are none, each with threads of its own that read and
    finish while its network is at work.

    Args:
        model: URI that each actor loads its predictor from.
    """
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    actors = max(1, min(gpus or cpus - 1, len(items)))
    threads = max(2, cpus // actors) if gpus else 2
    blocks = max(
        math.ceil(len(items) / IMAGES_PER_BLOCK), min(len(items), 2 * MAX_CONCURRENT_CALLS * actors)
    )
    rows = ray.data.from_items([{"item": item} for item in items], override_num_blocks=blocks)
    results = rows.map_batches(
        InferenceWorker,
        batch_size=None,
        fn_constructor_args=(model, threshold, tta, task, threads),
        compute=ray.data.ActorPoolStrategy(
            size=actors, max_concurrent_calls_per_actor=MAX_CONCURRENT_CALLS
        ),
        num_gpus=1 if gpus else None,
    )
    for row in results.iter_rows():
        yield json.loads(row["row"])
