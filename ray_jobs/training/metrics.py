"""Prometheus metrics of a training: gauges that the workers set and Ray's agents export.

Ray prefixes every name with `ray_`. Workers export their gauges every 10 s; the series disappear
20 s after the worker exits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray.util.metrics import Gauge

EXPORT_INTERVAL_S = 1.0
MAX_TAG_LENGTH = 64  # characters; a name in storage may be longer


@dataclass(frozen=True)
class MetricSpec:
    """A gauge; `name` is its key in the trainer's progress and metrics.

    Attributes:
        per_rank: every rank has one, with the tag `rank`; else only rank 0.
        label: a further tag, whose values are the keys of the metric; "" if it is a number.
    """

    name: str
    unit: str
    description: str
    per_rank: bool = False
    label: str = ""

    @property
    def prometheus_name(self) -> str:
        return f"ray_segan_{self.name}"


METRICS = (
    MetricSpec("epoch", "epochs", "Current epoch, from 1"),
    MetricSpec("samples", "images", "Images seen since the first step, all workers"),
    MetricSpec("images_per_second", "images/s", "Mean over the epoch so far, all workers"),
    MetricSpec(
        "data_wait_fraction", "of 1", "Fraction of the last epoch spent waiting for data", True
    ),
    MetricSpec("critic_loss", "1", "Critic's loss, mean over workers and the last logged steps"),
    MetricSpec("segmentor_loss", "1", "Segmentor's loss without Dice, mean of the same steps"),
    MetricSpec("dice_loss", "1", "Dice loss, mean of the same steps, whatever its weight"),
    MetricSpec("jaccard", "of 1", "Jaccard of the last validation, at its best threshold"),
    MetricSpec("best_jaccard", "of 1", "Best Jaccard of the run's validations so far"),
    MetricSpec(
        "saturated_fraction", "of 1", "Fraction of the validation pixels below 0.01 or above 0.99"
    ),
    MetricSpec("wrong_saturated_fraction", "of 1", "The same fraction of the wrong pixels alone"),
    MetricSpec("k", "1", "Steepness of the segmentor's logistic output"),
    MetricSpec("learning_rate", "1", "Learning rate of the segmentor's optimizer"),
    MetricSpec("critic_learning_rate", "1", "Learning rate of the critic's optimizer"),
    MetricSpec(
        "stage_seconds", "s", "Time of each stage in the last epoch, on rank 0", label="stage"
    ),
    MetricSpec(
        "checkpoint_seconds", "s", "Time that the training stood still for the last checkpoint"
    ),
    MetricSpec("restarts", "starts", "Restarts of the worker group since the job began"),
)


class Gauges:
    """The gauges of one worker: all metrics on rank 0, those with `per_rank` on the other ranks.

    Ray drops a gauge that is not set for 20 s, and validations can be minutes apart. A thread
    therefore sets all gauges every second to the latest values.
    """

    def __init__(self, uri: str, rank: int):
        """
        Args:
            uri: of the run, which gives the tags of `run_tags`.
        """
        tags = run_tags(uri)
        self._values: dict[str, Any] = {}
        self._gauges = {}
        for metric in METRICS:
            if rank == 0 or metric.per_rank:
                metric_tags = tags | ({"rank": str(rank)} if metric.per_rank else {})
                description = f"{metric.description} [{metric.unit}]"
                keys = (*metric_tags, *filter(None, [metric.label]))
                gauge = Gauge(f"segan_{metric.name}", description, keys)
                self._gauges[metric] = gauge.set_default_tags(metric_tags)

    def update(self, values: Mapping[str, Any]) -> None:
        """Stores new values; keys that are no metric are ignored."""
        self._values.update(values)

    @contextlib.contextmanager
    def export_in_background(self) -> Iterator[None]:
        """Sets the gauges every second while the block runs."""
        finished = threading.Event()

        def export() -> None:
            while not finished.wait(EXPORT_INTERVAL_S):
                for metric, gauge in self._gauges.items():
                    value = self._values.get(metric.name)
                    if metric.label:
                        for key, number in (value or {}).items():
                            gauge.set(number, {metric.label: key})
                    else:
                        gauge.set(value)  # Ray ignores None

        threading.Thread(target=export, daemon=True).start()
        try:
            yield
        finally:
            finished.set()


def run_tags(uri: str) -> dict[str, str]:
    """The tags run, study and trial of a run's URI; study and trial are empty outside a study."""
    *_, study, folder, run = ["", "", *uri.split("/")]
    in_study = folder == "trials"
    tags = {"run": run, "study": study if in_study else "", "trial": run if in_study else ""}
    return {name: value[-MAX_TAG_LENGTH:] for name, value in tags.items()}
