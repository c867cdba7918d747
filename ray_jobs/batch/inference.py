"""Distributed batch inference with Ray Data."""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError
from ray.util.client import ray as client
from torch import Tensor

from ray_jobs.cluster.connect import unwrap_user_error
from ray_jobs.cluster.queue import report_busy_cluster
from segan import storage
from segan.inference.pipeline import ImageTask, Item, Row, run_image_task
from segan.inference.predictor import Predictor

IMAGES_PER_BLOCK = 100  # given to an actor, and returned by it, at once
MAX_CONCURRENT_CALLS = 2  # per actor: a block starts while the previous one is being finished


class ThreadSafePredictor(Predictor):
    """A predictor that several threads share."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._lock = threading.Lock()

    def predict_proba(self, frames: Tensor) -> Tensor:
        with self._lock:
            return super().predict_proba(frames)


class InferenceWorker:
    """The class of the actors: each loads the model and runs the task on blocks of images."""

    def __init__(
        self,
        model: str,
        threshold: float | None,
        tta: bool | None,
        task: ImageTask[Any],
        threads: int,
    ):
        storage.retry_access_checks()  # the driver has checked the access before
        torch.set_num_threads(1)  # there is one actor per CPU
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
    """The rows of `segan.inference.pipeline.run_image_task`, in the order of their completion.

    Runs one actor per GPU, or per CPU if the cluster has no GPUs. Each actor reads and
    post-processes images in threads while its network runs. On a busy cluster, the work starts
    with the first actor that can be placed.

    Args:
        task: what to do with each image; sent to the actors.
        model: the URI that each actor loads its predictor from.
        threshold: replaces the model's own.
        tta: replaces the model's own setting of test-time augmentation.

    Raises:
        StorageError, RejectedError: raised by the task in an actor.
    """
    report_busy_cluster("GPU" if ray.cluster_resources().get("GPU") else "CPU")
    arguments = (task, items, model, threshold, tta)
    yield from _map_by_actor(*arguments) if client.is_connected() else _map(*arguments)


def _map(
    task: ImageTask[Item],
    items: Sequence[Item],
    model: str,
    threshold: float | None,
    tta: bool | None,
) -> Iterator[Row]:
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    actors = max(1, min(gpus or cpus - 1, len(items)))
    threads = max(2, cpus // actors) if gpus else 2
    blocks = max(
        math.ceil(len(items) / IMAGES_PER_BLOCK), min(len(items), 2 * MAX_CONCURRENT_CALLS * actors)
    )
    dataset = ray.data.from_items([{"item": item} for item in items], override_num_blocks=blocks)
    results = dataset.map_batches(
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


class _RowSource:
    """The class of an actor that drives a Ray Data execution for a driver with Ray Client."""

    def __init__(self, *arguments: Any):
        self.rows = _map(*arguments)

    def take(self) -> list[Row]:
        """The next rows; none at the end. Raises as `map_images`."""
        try:
            return list(itertools.islice(self.rows, IMAGES_PER_BLOCK))
        except RayError as error:
            raise unwrap_user_error(error) from None


def _map_by_actor(*arguments: Any) -> Iterator[Row]:
    # Ray Data's executor works in a process of the cluster alone.
    source = ray.remote(num_cpus=0)(_RowSource).remote(*arguments)
    try:
        while rows := ray.get(source.take.remote()):
            yield from rows
    finally:
        ray.kill(source)
