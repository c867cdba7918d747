"""A study's search in its report: the trials, and how many ASHA promoted at each rung."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from segan.runs.study import Study
from segan.runs.trial import Trial, TrialStatus
from segan.utils.models import FrozenModel


class TrialSummary(FrozenModel):
    """A trial.

    Attributes:
        jaccard, threshold, best_epoch: of its best validation.
        epochs: completed.
        reason: explains a status other than finished; may be empty.
        best_jaccards: (epoch, best Jaccard so far) of each validation; ASHA compares these.
    """

    name: str
    parameters: dict[str, Any]
    jaccard: float
    threshold: float | None
    best_epoch: int
    epochs: int
    status: TrialStatus
    reason: str
    best_jaccards: tuple[tuple[int, float], ...]


class Rung(FrozenModel):
    """A rung of ASHA.

    Attributes:
        epoch: the first epoch whose validation counts for the rung.
        num_reached, num_promoted: trials that reached the rung, and that continued after it.
        cutoff: the lowest best-so-far Jaccard that was promoted; None if none was.
    """

    epoch: int
    num_reached: int
    num_promoted: int
    cutoff: float | None


class SearchSummary(FrozenModel):
    """The search of a study.

    Attributes:
        algorithm: as `search.algorithm`, or "ablation".
        trials: the best first.
        rungs: empty without early stopping.
        epochs_trained: by all trials together.
        epochs_without_stopping: what they would have trained without early stopping.
    """

    algorithm: str
    trials: tuple[TrialSummary, ...]
    rungs: tuple[Rung, ...]
    epochs_trained: int
    epochs_without_stopping: int


def summarise_search(study: Study) -> SearchSummary:
    """Summarises the trials and rungs of a study."""
    config = study.config()
    search, epochs = config["search"], config["training"]["epochs"]
    trials = {trial.name: trial for trial in study.trials()}
    summaries = tuple(
        TrialSummary(
            name=row.trial,
            parameters=row.parameters,
            jaccard=row.jaccard,
            threshold=row.threshold,
            best_epoch=row.best_epoch,
            epochs=row.epochs,
            status=row.status,
            reason=row.reason,
            best_jaccards=best_so_far(trials[row.trial]),
        )
        for row in study.leaderboard_rows()
    )
    is_ablation = study.command() == "ablate"
    rungs = rung_epochs(search["grace_period"], search["reduction_factor"], epochs)
    if is_ablation or not search["early_stopping"]:
        rungs = []
    return SearchSummary(
        algorithm="ablation" if is_ablation else search["algorithm"],
        trials=summaries,
        rungs=tuple(summarise_rung(epoch, summaries) for epoch in rungs),
        epochs_trained=sum(trial.epochs for trial in summaries),
        epochs_without_stopping=len(summaries) * epochs,
    )


def best_so_far(trial: Trial) -> tuple[tuple[int, float], ...]:
    """(epoch, best Jaccard so far) of each validation of a trial."""
    lines = trial.epoch_metrics()
    bests = accumulate((line["jaccard"] for line in lines), max)
    return tuple((line["epoch"], best) for line, best in zip(lines, bests, strict=True))


def rung_epochs(grace: int, factor: float, epochs: int) -> list[int]:
    """ASHA's rungs before the last epoch: grace, grace x factor, grace x factor^2, ..."""
    rungs, rung = [], float(min(grace, epochs))
    while math.ceil(rung) < epochs:
        rungs.append(math.ceil(rung))
        rung *= factor
    return rungs


def summarise_rung(epoch: int, trials: Sequence[TrialSummary]) -> Rung:
    """A rung; a trial counts as promoted if it was validated again afterwards or finished."""
    reached, promoted = 0, []
    for trial in trials:
        later = [score for at, score in trial.best_jaccards if at >= epoch]
        reached += bool(later)
        if len(later) > 1 or trial.status is TrialStatus.FINISHED:
            promoted += later[:1]
    cutoff = min(promoted, default=None)
    return Rung(epoch=epoch, num_reached=reached, num_promoted=len(promoted), cutoff=cutoff)
