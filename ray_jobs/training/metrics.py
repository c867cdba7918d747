"""What Prometheus sees of a training: gauges that its workers set and Ray's agents export.

Ray puts `ray_` before every name. A worker's gauges leave it every ten seconds, whatever they were
in between, and are gone twenty seconds after the worker is.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray.util.metrics import Gauge

EXPORT_INTERVAL_S = 1.0
MAX_TAG_LENGTH = 64  # characters; a name in storage may be of any length


@dataclass(frozen=True)
class MetricSpec:
    """A gauge; `name` is what the loop calls it in its statuses and reports."""

    name: str
    unit: str
    description: str
    per_rank: bool = False

    @property
    def prometheus_name(self) -> str:
        """Its name in Prometheus."""
        return f"ray_segan_{self.name}"


METRICS = (
    MetricSpec("epoch", "epochs", "Epoch that the training is in, from 1"),
    MetricSpec(
        "samples", "images", "Images that it has taken since its first step, of all workers"
    ),
    MetricSpec("images_per_second", "images/s", "Of all workers, mean over the epoch so far"),
    MetricSpec(
        "data_wait_fraction", "of 1", "Part of the last epoch spent waiting for data", per_rank=True
    ),
    MetricSpec("critic_loss", "1", "The critic's loss at the last step logged, mean over workers"),
    MetricSpec("segmentor_loss", "1", "The segmentor's multi-scale loss at the last step logged"),
    MetricSpec("dice_loss", "1", "Dice loss at the last step logged, whatever its weight"),
    MetricSpec("jaccard", "of 1", "Jaccard of the last validation, at its best threshold"),
    MetricSpec("best_jaccard", "of 1", "The best Jaccard of the run's validations so far"),
    MetricSpec("k", "1", "Steepness of the segmentor's logistic output"),
    MetricSpec("learning_rate", "1", "Learning rate of both optimizers"),
    MetricSpec("validation_seconds", "s", "What the last validation took"),
    MetricSpec(
        "checkpoint_seconds", "s", "What the last checkpoint took, until every worker goes on"
    ),
    MetricSpec("restarts", "starts", "Times that the worker group was started again"),
)


class Gauges:
    """The gauges of one worker of a run: all of them on rank 0, on others those of each rank.

    Ray drops a gauge that was not set for twenty seconds, and there may be minutes between two
    validations. So a thread sets them all again and again, and the loop only leaves its values.
    """

    def __init__(self, uri: str, rank: int):
        tags = run_tags(uri)
        self._values: dict[str, Any] = {}
        self._gauges = {}
        for figure in METRICS:
            if rank == 0 or figure.per_rank:
                metric_tags = tags | ({"rank": str(rank)} if figure.per_rank else {})
                gauge = Gauge(
                    f"segan_{figure.name}",
                    f"{figure.description} [{figure.unit}]",
                    tuple(metric_tags),
                )
                self._gauges[figure.name] = gauge.set_default_tags(metric_tags)

    def update(self, values: Mapping[str, Any]) -> None:
        """Takes what is new; names that are no gauge's are passed over."""
        self._values.update(values)

    @contextlib.contextmanager
    def export_in_background(self) -> Iterator[None]:
        """Shows Ray the values for as long as the block runs."""
        finished = threading.Event()

        def export() -> None:
            while not finished.wait(EXPORT_INTERVAL_S):
                self._set_gauges()

        threading.Thread(target=export, daemon=True).start()
        try:
            yield
        finally:
            finished.set()

    def _set_gauges(self) -> None:
        for name, gauge in self._gauges.items():
            gauge.set(self._values.get(name))  # None is no value


def run_tags(uri: str) -> dict[str, str]:
    """run, study and trial of a run's URI; the last two are empty outside of a study."""
    *_, study, folder, run = ["", "", *uri.split("/")]
    in_study = folder == "trials"
    tags = {"run": run, "study": study if in_study else "", "trial": run if in_study else ""}
    return {name: value[-MAX_TAG_LENGTH:] for name, value in tags.items()}
