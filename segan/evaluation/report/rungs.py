"""A study's search for its report: what was tried, and how ASHA's rungs thinned it out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from segan.evaluation.report.findings import Plain
from segan.search import Study, Trial


class TrialFindings(Plain):
    """
    Attributes:
        jaccards: epoch and best Jaccard so far, which is what ASHA judges by, of each validation.
        epochs: done.
        why: how it ended.
    """

    name: str
    parameters: dict[str, Any]
    jaccard: float
    threshold: float | None
    epoch: int
    epochs: int
    why: str
    jaccards: tuple[tuple[int, float], ...]


class Rung(Plain):
    """A rung of ASHA: the trials that were judged there, and those that went on from it.

    Attributes:
        epoch: the first that is judged by it.
        cutoff: the best Jaccard so far of the poorest that went on; None where none did.
    """

    epoch: int
    reached: int
    went_on: int
    cutoff: float | None


class Search(Plain):
    """
    Attributes:
        trials: the best first.
        rungs: none without early stopping.
        epochs: trained by all trials together, and `whole` if none had been given up.
    """

    method: str
    trials: tuple[TrialFindings, ...]
    rungs: tuple[Rung, ...]
    epochs: int
    whole: int


def describe_search(study: Study) -> Search:
    """What became of a study's trials."""
    config = study.config()
    search, epochs = config["search"], config["training"]["epochs"]
    trials = {trial.name: trial for trial in study.trials()}
    found = tuple(
        TrialFindings(
            name=row["trial"],
            jaccards=best_so_far(trials[row["trial"]]),
            **{key: row[key] for key in ("parameters", "jaccard", "threshold", "epoch", "epochs")},
            why=row["why"],
        )
        for row in study.rows()
    )
    rungs = rung_epochs(search["grace_period"], search["reduction_factor"], epochs)
    return Search(
        method=search["method"],
        trials=found,
        rungs=tuple(judge(epoch, found) for epoch in rungs if search["early_stopping"]),
        epochs=sum(trial.epochs for trial in found),
        whole=len(found) * epochs,
    )


def best_so_far(trial: Trial) -> tuple[tuple[int, float], ...]:
    """Epoch and best Jaccard up to it, of each validation of a trial."""
    lines = trial.epochs()
    bests = accumulate((line["jaccard"] for line in lines), max)
    return tuple((line["epoch"], best) for line, best in zip(lines, bests, strict=True))


def rung_epochs(grace: int, factor: float, epochs: int) -> list[int]:
    """The epochs, before the last, at which ASHA judges: grace, grace x factor, x factor^2 ..."""
    found, at = [], float(min(grace, epochs))
    while math.ceil(at) < epochs:
        found.append(math.ceil(at))
        at *= factor
    return found


def judge(epoch: int, trials: Sequence[TrialFindings]) -> Rung:
    """A rung from what its trials did: who went on was validated again."""
    reached, went_on = 0, []
    for trial in trials:
        beyond = [score for at, score in trial.jaccards if at >= epoch]
        reached += bool(beyond)
        went_on += beyond[:1] if len(beyond) > 1 or trial.why == "finished" else []
    cutoff = min(went_on, default=None)
    return Rung(epoch=epoch, reached=reached, went_on=len(went_on), cutoff=cutoff)
