"""Something done to each of many items with a model at hand, over the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import torch

from segan.inference.predictor import Predictor

Do = Callable[[Predictor, Any], dict[str, Any]]


class WithModel:
    """An actor that holds the model and does one thing to each item that it is given."""

    def __init__(self, model: str, threshold: float | None, do: Do, items: Any):
        torch.set_num_threads(1)  # the cluster's CPUs are shared out among the actors
        self.predictor = Predictor.load(model, threshold)
        self.do, self.items = do, ray.get(items[0])  # in a list, so that it comes as a reference

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"result": self.do(self.predictor, self.items[row["id"]])}


def each(
    do: Do, items: Sequence[Any], model: str, threshold: float | None = None
) -> Iterator[dict[str, Any]]:
    """`do(predictor, item)` of every item, as the cluster finishes them.

    Args:
        do: a function of a module, with results of plain values.
        model: URI that each actor loads its predictor from.
    """
    have = ray.cluster_resources()
    gpus = int(have.get("GPU", 0))
    actors = max(1, min(gpus or int(have.get("CPU", 1)) - 1, len(items)))
    numbers = ray.data.range(len(items), override_num_blocks=min(len(items), 4 * actors))
    results = numbers.map(
        WithModel,
        fn_constructor_args=(model, threshold, do, [ray.put(list(items))]),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=1 if gpus else None,
    )
    for row in results.iter_rows():
        yield row["result"]
