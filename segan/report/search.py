"""A study's search in its report: the trials, and how many ASHA promoted at each rung."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
    trials = [summarise_trial(trial, trial.run.metrics()) for trial in study.trials()]
    return combine_trials(study, trials)


def combine_trials(study: Study, trials: Iterable[TrialSummary]) -> SearchSummary:
    """The summary of a study whose trials are summarised already."""
    config, is_ablation = study.config(), study.command() == "ablate"
    search, epochs = config["search"], config["training"]["epochs"]
    trials = tuple(sorted(trials, key=lambda trial: -trial.jaccard))
    rungs = rung_epochs(search["grace_period"], search["reduction_factor"], epochs)
    if is_ablation or not search["early_stopping"]:
        rungs = []
    return SearchSummary(
        algorithm="ablation" if is_ablation else search["algorithm"],
        trials=trials,
        rungs=tuple(summarise_rung(epoch, trials) for epoch in rungs),
        epochs_trained=sum(trial.epochs for trial in trials),
        epochs_without_stopping=len(trials) * epochs,
    )


def summarise_trial(trial: Trial, metrics: Sequence[Mapping[str, Any]]) -> TrialSummary:
    """Summarises a trial from the lines of its metrics.jsonl and its result."""
    lines = [line for line in metrics if "jaccard" in line]
    bests = accumulate((line["jaccard"] for line in lines), max)
    best = max(lines, key=lambda line: line["jaccard"], default={"jaccard": 0.0, "epoch": 0})
    result = trial.result()
    return TrialSummary(
        name=trial.name,
        parameters=trial.parameters,
        jaccard=best["jaccard"],
        threshold=best.get("threshold"),
        best_epoch=best["epoch"],
        epochs=lines[-1]["epoch"] if lines else 0,
        status=result.status,
        reason=result.reason,
        best_jaccards=tuple(
            (line["epoch"], so_far) for line, so_far in zip(lines, bests, strict=True)
        ),
    )


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
