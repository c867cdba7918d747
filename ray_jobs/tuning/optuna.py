"""Points of a study from Optuna, which learns from the trials that are over."""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from segan.config import SearchConfig
from segan.errors import UsageError
from segan.runs.study import Study
from segan.runs.trial import Trial


class StudyOptunaSearch(Searcher):
    """Keeps each point that Optuna suggests as a trial of the study, under its name.

    A study that was stopped gives its unfinished trials first and tells Optuna of the others, so
    nothing of Optuna's own has to be stored.
    """

    def __init__(self, study: Study, search: SearchConfig, trials: list[Trial]):
        super().__init__(metric="jaccard", mode="max")
        self._study = study
        self._optuna = _build_optuna(search)
        self._unfinished = [trial for trial in trials if not trial.result().has_ended]
        for trial in trials:
            if trial.result().has_ended and trial.epoch_metrics():
                best = max(line["jaccard"] for line in trial.epoch_metrics())
                self._optuna.add_evaluated_point(trial.parameters, best)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        if self._unfinished:
            return {"trial": self._unfinished.pop(0).name}
        point = self._optuna.suggest(trial_id)
        (trial,) = self._study.add_trials([{key: float(f"{v:.4g}") for key, v in point.items()}])
        return {"trial": trial.name}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id in self._optuna._ot_trials:
            self._optuna.on_trial_complete(trial_id, result, error)


def _build_optuna(search: SearchConfig) -> OptunaSearch:
    space = {
        "optimizer.learning_rate": tune.loguniform(*search.learning_rate),
        "optimizer.weight_clip": tune.loguniform(*search.weight_clip),
        "logistic.final_k": tune.choice(list(search.final_k)),
    }
    try:
        return OptunaSearch(space, metric="jaccard", mode="max", seed=search.seed)
    except (ImportError, AssertionError):
        raise UsageError(
            "search.algorithm optuna: Optuna is not installed; in the checkout, run "
            "pip install -e '.[optuna]'"
        ) from None
