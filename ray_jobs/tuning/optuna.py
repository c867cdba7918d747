"""Optuna as the search algorithm of a study."""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from segan import storage
from segan.config import SearchConfig
from segan.runs.study import Study
from segan.runs.trial import Trial
from segan.utils.extras import require_extra


class StudyOptunaSearch(Searcher):
    """Adds the parameters that Optuna suggests to the study as trials, and suggests their names.

    A resumed study first suggests its unfinished trials and tells Optuna the results of the
    finished ones, so Optuna's own state need not be stored.
    """

    def __init__(self, study: Study, search: SearchConfig, trials: list[Trial]):
        super().__init__(metric="jaccard", mode="max")
        self._study = study
        self._optuna = _build_optuna(search, len(trials))
        self._suggested_ids: set[str] = set()
        self._unfinished: list[Trial] = []
        results = storage.map_in_threads(Trial.result, trials)
        epoch_metrics = storage.map_in_threads(Trial.epoch_metrics, trials)
        for trial, result, epochs in zip(trials, results, epoch_metrics, strict=True):
            if not result.has_ended:
                self._unfinished.append(trial)
            elif epochs:
                best = max(line["jaccard"] for line in epochs)
                self._optuna.add_evaluated_point(trial.parameters, best)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        if self._unfinished:
            return {"trial": self._unfinished.pop(0).name}
        parameters = self._optuna.suggest(trial_id)
        self._suggested_ids.add(trial_id)
        rounded = {key: float(f"{value:.4g}") for key, value in parameters.items()}
        (trial,) = self._study.add_trials([rounded])
        return {"trial": trial.name}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id in self._suggested_ids:
            self._optuna.on_trial_complete(trial_id, result, error)


def _build_optuna(search: SearchConfig, num_trials: int) -> OptunaSearch:
    """A search whose seed depends on the earlier trials, so that it does not suggest them again."""
    space = {
        "optimizer.learning_rate": tune.loguniform(*search.learning_rate),
        "optimizer.weight_clip": tune.loguniform(*search.weight_clip),
        "logistic.final_k": tune.choice(list(search.final_k)),
    }
    require_extra("search.algorithm=optuna", "optuna")
    return OptunaSearch(space, metric="jaccard", mode="max", seed=search.seed + num_trials)
