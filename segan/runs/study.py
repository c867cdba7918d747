"""A study in storage: the points that are tried, and what became of each.

    <study>/study.json  leaderboard.json  trials/<trial>/ (a run, with result.json when it is over)

The points are drawn when a study begins and kept, and every trial's metrics are in its run, so a
study whose driver died is taken up from these files alone. Needs no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from segan import storage
from segan.config import Config
from segan.errors import UsageError
from segan.runs.run import RESULT_FILE, Run

STUDY_FILE = "study.json"


@dataclass(frozen=True)
class Trial:
    """A point of the search: `parameters` by their configuration keys, and where its run is."""

    name: str
    parameters: dict[str, Any]
    run: Run

    def build_config(self, config: Config) -> Config:
        """The study's configuration with this point's values."""
        return config.with_overrides(self.parameters)

    def epoch_metrics(self) -> list[dict[str, Any]]:
        """The validated epochs that it has behind it, in order."""
        return [line for line in self.run.metrics() if "jaccard" in line]

    def result(self) -> dict[str, Any] | None:
        """What became of it; None while it is not over."""
        name = storage.join(self.run.uri, RESULT_FILE)
        found: dict[str, Any] | None = storage.read_json(name) if storage.exists(name) else None
        return found

    def mark_done(self, status: str, seconds: float) -> None:
        """Notes that the trial is over, and why."""
        storage.write_json(
            storage.join(self.run.uri, RESULT_FILE), {"why": status, "seconds": round(seconds, 1)}
        )

    def clear_result(self) -> None:
        """Takes back that the trial is over."""
        storage.delete_file(storage.join(self.run.uri, RESULT_FILE))


class Study:
    """One search's place in storage."""

    def __init__(self, uri: str):
        self.uri = storage.normalise(uri)

    def create_or_resume(
        self,
        config: Config,
        fingerprint: str,
        parameters_by_name: Mapping[str, dict[str, Any]] | None = None,
    ) -> list[Trial]:
        """Draws and keeps the points, or takes up those of the study that is here.

        Args:
            named: the points instead, by the names of their trials; what is not there yet is
                added, and what is there and not asked for stays as it is.

        Raises:
            UsageError: the name is in use with another configuration or other records.
        """
        storage.check_access(self.uri)
        name = storage.join(self.uri, STUDY_FILE)
        wanted = {"config": _identity(config), "fingerprint": fingerprint}
        if storage.exists(name):
            found = storage.read_json(name)
            # A study from before a key was there has its default.
            known = {
                section: branch | found["config"].get(section, {})
                for section, branch in _identity(Config()).items()
            }
            _require_same(self.uri, wanted, {"config": known, "fingerprint": found["fingerprint"]})
            return (
                self._make_trials(found["trials"])
                if parameters_by_name is None
                else self._add_missing_trials(parameters_by_name)
            )
        storage.write_json(name, wanted | {"trials": []})
        return (
            self.add_trials(sample_parameters(config))
            if parameters_by_name is None
            else self._add_missing_trials(parameters_by_name)
        )

    def config(self) -> dict[str, Any]:
        """The sections that it began with, but for where it ran and what it was called."""
        found: dict[str, Any] = storage.read_json(storage.join(self.uri, STUDY_FILE))["config"]
        return found

    def add_trials(self, parameters: list[dict[str, float]]) -> list[Trial]:
        """Keeps more points, named in their turn; returns them as trials."""
        name = storage.join(self.uri, STUDY_FILE)
        study = storage.read_json(name)
        first = len(study["trials"])
        new = [
            {"name": f"trial_{number:03d}", "parameters": point}
            for number, point in enumerate(parameters, first)
        ]
        storage.write_json(name, study | {"trials": study["trials"] + new})
        return self._make_trials(new)

    def _add_missing_trials(self, parameters_by_name: Mapping[str, dict[str, Any]]) -> list[Trial]:
        name = storage.join(self.uri, STUDY_FILE)
        study = storage.read_json(name)
        known = {entry["name"]: entry["parameters"] for entry in study["trials"]}
        for trial, point in parameters_by_name.items():
            if known.setdefault(trial, point) != point:
                raise UsageError(
                    f"{self.uri}: {trial} began with {known[trial]}, now {point}; use another name"
                )
        entries = [{"name": trial, "parameters": point} for trial, point in known.items()]
        storage.write_json(name, study | {"trials": entries})
        return [trial for trial in self._make_trials(entries) if trial.name in parameters_by_name]

    def get_trial(self, name: str) -> Trial:
        """A trial by its name."""
        return next(trial for trial in self.trials() if trial.name == name)

    def trials(self) -> list[Trial]:
        """The points of a study that has begun; raises StorageError where there is none."""
        return self._make_trials(storage.read_json(storage.join(self.uri, STUDY_FILE))["trials"])

    def leaderboard_rows(self) -> list[dict[str, Any]]:
        """What became of each trial so far, the best first."""
        return sorted(map(_leaderboard_row, self.trials()), key=lambda row: -row["jaccard"])

    def write_leaderboard(self) -> list[dict[str, Any]]:
        """The same rows, written to leaderboard.json too."""
        rows = self.leaderboard_rows()
        storage.write_json(storage.join(self.uri, "leaderboard.json"), {"trials": rows})
        return rows

    def _make_trials(self, entries: list[dict[str, Any]]) -> list[Trial]:
        return [
            Trial(e["name"], e["parameters"], Run(storage.join(self.uri, "trials", e["name"])))
            for e in entries
        ]


def sample_parameters(config: Config) -> list[dict[str, float]]:
    """The points of a study, a function of its configuration: random ones, or the paper's grid.

    Learning rate and clamp are log-uniform in their ranges, final k is one of its values. The
    grid takes every final k at the configuration's own learning rate and clamp; its other axis,
    the threshold, every trial searches whole. Optuna's points are asked for one by one instead.
    """
    search = config.search
    if search.algorithm == "optuna":
        return []
    if search.algorithm == "grid":
        return [{"logistic.final_k": k} for k in search.final_k]
    rng = np.random.default_rng(search.seed)
    return [
        {
            "optimizer.learning_rate": _log_uniform(rng, search.learning_rate),
            "optimizer.weight_clip": _log_uniform(rng, search.weight_clip),
            "logistic.final_k": float(rng.choice(search.final_k)),
        }
        for _ in range(search.trials)
    ]


def best_epoch(epochs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The one of the best validation Jaccard, the earliest of equals; None of none."""
    return max(epochs, key=lambda line: line["jaccard"], default=None)


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    low, high = np.log(bounds)
    return float(f"{np.exp(rng.uniform(low, high)):.4g}")


def _leaderboard_row(trial: Trial) -> dict[str, Any]:
    epochs, result = trial.epoch_metrics(), trial.result() or {"why": "not over", "seconds": 0.0}
    best = best_epoch(epochs)
    checkpoint = trial.run.best_checkpoint()
    return {
        "trial": trial.name,
        "parameters": trial.parameters,
        "epochs": epochs[-1]["epoch"] if epochs else 0,
        "jaccard": best["jaccard"] if best else 0.0,
        "epoch": best["epoch"] if best else 0,
        "threshold": best["threshold"] if best else None,
        "jaccard_at_config_threshold": best["jaccard_at_config_threshold"] if best else None,
        "jaccard_curve": best["jaccard_curve"] if best else None,
        "checkpoint": checkpoint.uri if checkpoint else None,
        "seconds": result["seconds"],
        "why": result["why"],
    }


def _identity(config: Config) -> dict[str, Any]:
    """What must stay the same for a study to go on."""
    return config.model_dump(
        mode="json",
        exclude={
            "cluster": True,
            "ablation": True,  # may grow; what each run does is in its trial
            "data": {"records"},
            "training": {"checkpoint_every_steps"},
            "evaluation": {"report"},
        },
    )


def _require_same(uri: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
    if expected == found:
        return
    mine, theirs = expected["config"], found["config"]
    keys = [
        f"{section}.{key} {theirs.get(section, {}).get(key)!r}, now {value!r}"
        for section, branch in mine.items()
        for key, value in branch.items()
        if theirs.get(section, {}).get(key) != value
    ]
    raise UsageError(
        f"{uri}: this study began with {', '.join(keys) or 'other records'}; use the same to go "
        "on with it, or another name"
    )
