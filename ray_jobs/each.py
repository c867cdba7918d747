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
from segan.inference.pipeline import Item, Row, Work, segment
from segan.inference.predictor import Predictor

BLOCK = 100  # images that an actor is given at once, and that come back together
AT_ONCE = 2  # blocks in an actor: while one ends, the next has begun


class OneAtATime(Predictor):
    """A model that several threads share."""

    _lock = threading.Lock()

    def maps(self, frames: Tensor) -> Tensor:
        with self._lock:
            return super().maps(frames)


class WithModel:
    """An actor that holds the model and does its work to the images that it is given."""

    def __init__(
        self,
        model: str,
        threshold: float | None,
        flips: bool | None,
        work: Work[Any],
        threads: int,
    ):
        storage.be_patient()  # the command's own look at the model was before
        torch.set_num_threads(1)  # the cluster's CPUs are shared out among the actors
        self.predictor = OneAtATime.load(model, threshold, flips=flips)
        self.work, self.threads = work, threads

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[str]]:
        rows = segment(self.predictor, block["item"], self.work, self.threads)
        return {"row": [json.dumps(row) for row in rows]}


def each(
    work: Work[Item],
    items: Sequence[Item],
    model: str,
    threshold: float | None = None,
    flips: bool | None = None,
) -> Iterator[Row]:
    """What `segan.inference.pipeline.segment` gives of every item, as the cluster finishes them.

    One actor a GPU, or a CPU where there are none, each with threads of its own that read and
    finish while its network is at work.

    Args:
        model: URI that each actor loads its predictor from.
    """
    have = ray.cluster_resources()
    gpus, cpus = int(have.get("GPU", 0)), int(have.get("CPU", 1))
    actors = max(1, min(gpus or cpus - 1, len(items)))
    threads = max(2, cpus // actors) if gpus else 2
    blocks = max(math.ceil(len(items) / BLOCK), min(len(items), 2 * AT_ONCE * actors))
    rows = ray.data.from_items([{"item": item} for item in items], override_num_blocks=blocks)
    results = rows.map_batches(
        WithModel,
        batch_size=None,
        fn_constructor_args=(model, threshold, flips, work, threads),
        compute=ray.data.ActorPoolStrategy(size=actors, max_concurrent_calls_per_actor=AT_ONCE),
        num_gpus=1 if gpus else None,
    )
    for row in results.iter_rows():
        yield json.loads(row["row"])
