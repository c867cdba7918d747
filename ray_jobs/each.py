"""Something done to each of many items with a model at hand, over the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import torch

from segan.inference.predictor import Predictor

Row = dict[str, Any]
Do = Callable[[Predictor, Row], Row]


class WithModel:
    """An actor that holds the model and does one thing to each item that it is given."""

    def __init__(self, model: str, threshold: float | None, do: Do):
        torch.set_num_threads(1)  # the cluster's CPUs are shared out among the actors
        self.predictor = Predictor.load(model, threshold)
        self.do = do

    def __call__(self, row: Row) -> Row:
        return self.do(self.predictor, row)


def each(do: Do, rows: Sequence[Row], model: str, threshold: float | None = None) -> Iterator[Row]:
    """`do(predictor, row)` of every row, as the cluster finishes them.

    Args:
        do: a function of a module.
        rows: plain values by name, and so are the results.
        model: URI that each actor loads its predictor from.
    """
    have = ray.cluster_resources()
    gpus = int(have.get("GPU", 0))
    actors = max(1, min(gpus or int(have.get("CPU", 1)) - 1, len(rows)))
    blocks = ray.data.from_items(list(rows), override_num_blocks=min(len(rows), 4 * actors))
    results = blocks.map(
        WithModel,
        fn_constructor_args=(model, threshold, do),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=1 if gpus else None,
    )
    yield from results.iter_rows()
