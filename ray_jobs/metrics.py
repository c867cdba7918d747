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

SET_SECONDS = 1.0
LONGEST_TAG = 64  # characters; a name in storage may be of any length


@dataclass(frozen=True)
class Figure:
    """A gauge; `name` is what the loop calls it in its statuses and reports."""

    name: str
    unit: str
    what: str
    each_rank: bool = False

    @property
    def series(self) -> str:
        """Its name in Prometheus."""
        return f"ray_segan_{self.name}"


FIGURES = (
    Figure("epoch", "epochs", "Epoch that the training is in, from 1"),
    Figure("samples", "images", "Images that it has taken since its first step, of all workers"),
    Figure("images_per_second", "images/s", "Of all workers, mean over the epoch so far"),
    Figure("wait_share", "of 1", "Part of the last epoch spent waiting for data", each_rank=True),
    Figure("critic_loss", "1", "The critic's loss at the last step logged, mean over workers"),
    Figure("segmentor_loss", "1", "The segmentor's multi-scale loss at the last step logged"),
    Figure("dice_loss", "1", "Dice loss at the last step logged, whatever its weight"),
    Figure("jaccard", "of 1", "Jaccard of the last validation, at its best threshold"),
    Figure("best_jaccard", "of 1", "The best Jaccard of the run's validations so far"),
    Figure("k", "1", "Steepness of the segmentor's logistic output"),
    Figure("learning_rate", "1", "Learning rate of both optimizers"),
    Figure("validation_seconds", "s", "What the last validation took"),
    Figure("checkpoint_seconds", "s", "What the last checkpoint took, until every worker goes on"),
    Figure("retries", "starts", "Times that the worker group was started again"),
)


class Gauges:
    """The gauges of one worker of a run: all of them on rank 0, on others those of each rank.

    Ray drops a gauge that was not set for twenty seconds, and there may be minutes between two
    validations. So a thread sets them all again and again, and the loop only leaves its values.
    """

    def __init__(self, uri: str, rank: int):
        tags = tags_of(uri)
        self._values: dict[str, Any] = {}
        self._gauges = {}
        for figure in FIGURES:
            if rank == 0 or figure.each_rank:
                own = tags | ({"rank": str(rank)} if figure.each_rank else {})
                gauge = Gauge(f"segan_{figure.name}", f"{figure.what} [{figure.unit}]", tuple(own))
                self._gauges[figure.name] = gauge.set_default_tags(own)

    def keep(self, values: Mapping[str, Any]) -> None:
        """Takes what is new; names that are no gauge's are passed over."""
        self._values.update(values)

    @contextlib.contextmanager
    def exported(self) -> Iterator[None]:
        """Shows Ray the values for as long as the block runs."""
        over = threading.Event()

        def export() -> None:
            while not over.wait(SET_SECONDS):
                self._set()

        threading.Thread(target=export, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _set(self) -> None:
        for name, gauge in self._gauges.items():
            gauge.set(self._values.get(name))  # None is no value


def tags_of(uri: str) -> dict[str, str]:
    """run, study and trial of a run's URI; the last two are empty outside of a study."""
    *_, study, folder, run = ["", "", *uri.split("/")]
    inside = folder == "trials"
    tags = {"run": run, "study": study if inside else "", "trial": run if inside else ""}
    return {name: value[-LONGEST_TAG:] for name, value in tags.items()}
