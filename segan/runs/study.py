"""A study in storage: its trials, and how each of them ended.

    <study>/study.json  leaderboard.json  trials/<trial>/ (a run, with result.json when it ended)

The trials' parameters are fixed when a study is created and each trial's metrics are in its run,
so a study whose driver died is resumed from these files alone. Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import field_validator

from segan import storage
from segan.config import Config
from segan.errors import SeganError
from segan.runs.checkpoint import Checkpoint
from segan.runs.identity import config_identity, require_same
from segan.runs.run import Run
from segan.runs.trial import Trial, TrialStatus
from segan.storage.lease import no_fence
from segan.utils.models import FrozenModel

if TYPE_CHECKING:
    import numpy as np

STUDY_FILE = "study.json"

StudyCommand = Literal["tune", "ablate"]


@dataclass(frozen=True)
class TrialRow:
    """A trial on the leaderboard.

    Attributes:
        trial: its name.
        epochs: completed.
        jaccard, best_epoch, threshold, jaccard_at_config_threshold, jaccard_curve: of the epoch
            with the best validation Jaccard; 0 or None without a validation.
        checkpoint: URI of its best checkpoint.
    """

    trial: str
    parameters: dict[str, Any]
    epochs: int
    jaccard: float
    best_epoch: int
    threshold: float | None
    jaccard_at_config_threshold: float | None
    jaccard_curve: list[float] | None
    checkpoint: str | None
    seconds: float
    status: TrialStatus
    reason: str


class _Entry(FrozenModel):
    name: str
    parameters: dict[str, Any]


class _Content(FrozenModel):
    """The content of study.json."""

    identity: dict[str, Any]
    config: dict[str, dict[str, Any]]
    trials: list[_Entry]

    @field_validator("identity")
    @classmethod
    def _check_command(cls, identity: dict[str, Any]) -> dict[str, Any]:
        if identity.get("command") not in get_args(StudyCommand):
            raise ValueError(f"command: expected one of {', '.join(get_args(StudyCommand))}")
        return identity


class Study:
    """A study at a URI, which need not exist yet."""

    def __init__(self, uri: str, fence: Callable[[], None] = no_fence):
        """
        Args:
            fence: that of the trials' runs.
        """
        self.uri, self.fence = storage.normalise(uri), fence

    def create_or_resume(
        self,
        config: Config,
        fingerprint: str,
        parameters_by_name: Mapping[str, dict[str, Any]] | None = None,
    ) -> list[Trial]:
        """Samples and stores the trials' parameters, or returns the trials of an existing study.

        Args:
            parameters_by_name: for an ablation, the parameters of each trial by its name. Trials
                that the study lacks are added; stored trials that are not named stay as they are.

        Raises:
            UsageError: the study exists with another configuration or other records.
        """
        storage.check_access(self.uri)
        name = storage.join(self.uri, STUDY_FILE)
        command: StudyCommand = "tune" if parameters_by_name is None else "ablate"
        identity = _identity(config) | {"fingerprint": fingerprint, "command": command}
        if storage.exists(name):
            study = self._read()
            # A key that the study was started without has its default value.
            found = _identity(Config()) | study["identity"]
            advice = "resume with the same values, or use another URI"
            require_same(identity, found, self.uri, advice)
            entries = study["trials"]
        else:
            entries = _numbered(sample_parameters(config)) if command == "tune" else []
        if parameters_by_name is not None:
            entries = self._merge_trials(entries, parameters_by_name)
        content = {"identity": identity, "config": config.model_dump(mode="json")}
        storage.write_json(name, content | {"trials": entries})
        trials = self._make_trials(entries)
        if parameters_by_name is None:
            return trials
        return [trial for trial in trials if trial.name in parameters_by_name]

    def recorded_identity(self) -> dict[str, Any]:
        """The values that the study was started with; empty where there is no study."""
        if not storage.exists(storage.join(self.uri, STUDY_FILE)):
            return {}
        identity: dict[str, Any] = self._read()["identity"]
        return identity

    def config(self) -> dict[str, Any]:
        """The configuration of the latest start, as JSON values by section and key."""
        config: dict[str, Any] = self._read()["config"]
        return config

    def command(self) -> StudyCommand:
        """The command that the study was started with."""
        command: StudyCommand = self._read()["identity"]["command"]
        return command

    def fingerprint(self) -> str | None:
        """Of the records that the study began with; None before its first start."""
        return self.recorded_identity().get("fingerprint")

    def add_trials(self, parameters: Sequence[Mapping[str, float]]) -> list[Trial]:
        """Stores more trials, numbered after the existing ones; returns the new ones."""
        study = self._read()
        entries = _numbered(parameters, len(study["trials"]))
        study["trials"] += entries
        storage.write_json(storage.join(self.uri, STUDY_FILE), study)
        return self._make_trials(entries)

    def _merge_trials(
        self, entries: list[dict[str, Any]], parameters_by_name: Mapping[str, dict[str, Any]]
    ) -> list[dict[str, Any]]:
        known = {entry["name"]: entry["parameters"] for entry in entries}
        for trial, parameters in parameters_by_name.items():
            require_same(
                {"parameters": parameters},
                {"parameters": known.setdefault(trial, parameters)},
                f"{self.uri}: trial {trial}",
                "give the variant another name, or use another URI",
            )
        return [{"name": trial, "parameters": values} for trial, values in known.items()]

    def get_trial(self, name: str) -> Trial:
        return next(trial for trial in self.trials() if trial.name == name)

    def trials(self) -> list[Trial]:
        """The trials of an existing study; raises StorageError where there is none."""
        return self._make_trials(self._read()["trials"])

    def unfinished(self, names: Collection[str] | None = None) -> str:
        """Which trials have not ended, with their errors; "" if the study is over.

        Args:
            names: of the trials that count; None for all of the study.
        """
        study = self._read()
        trials = [t for t in self._make_trials(study["trials"]) if names is None or t.name in names]
        results = storage.map_in_threads(Trial.result, trials)
        open_trials = [
            f"{trial.name} (failed: {result.reason})" if result.reason else trial.name
            for trial, result in zip(trials, results, strict=True)
            if not result.has_ended
        ]
        search, total = study["config"]["search"], len(trials)
        if study["identity"]["command"] == "tune" and search["algorithm"] == "optuna":
            total = max(total, search["trials"])
            open_trials += [f"trial_{number:03d}" for number in range(len(trials), total)]
        if not open_trials:
            return ""
        return f"{len(open_trials)} of {total} trials have not ended: {', '.join(open_trials)}"

    def require_finished(self, names: Collection[str] | None = None) -> None:
        """Raises SeganError, which names them, if trials have not ended; see `unfinished`."""
        if unfinished := self.unfinished(names):
            raise SeganError(f"{self.uri}: {unfinished}; run the same command again to go on")

    def best_run(self) -> tuple[Run, Checkpoint] | None:
        """The trial with the best checkpoint, and that checkpoint; None before a validation."""
        runs = [trial.run for trial in self.trials()]
        checkpoints = storage.map_in_threads(Run.best_checkpoint, runs)
        validated = [(run, best) for run, best in zip(runs, checkpoints, strict=True) if best]
        return max(validated, key=lambda pair: pair[1].jaccard, default=None)

    def leaderboard_rows(self) -> list[TrialRow]:
        """A row for each trial, the best first."""
        rows = storage.map_in_threads(_leaderboard_row, self.trials())
        return sorted(rows, key=lambda row: -row.jaccard)

    def write_leaderboard(self) -> list[TrialRow]:
        """Writes the rows to leaderboard.json and returns them."""
        rows = self.leaderboard_rows()
        table = {"trials": [asdict(row) for row in rows]}
        storage.write_json(storage.join(self.uri, "leaderboard.json"), table)
        return rows

    def _read(self) -> dict[str, Any]:
        name = storage.join(self.uri, STUDY_FILE)
        expected = "a study, or one of an older version of segan; use another URI"
        return storage.read_model(name, _Content, expected).model_dump()

    def _make_trials(self, entries: Sequence[Mapping[str, Any]]) -> list[Trial]:
        return [
            Trial(
                entry["name"],
                entry["parameters"],
                Run(storage.join(self.uri, "trials", entry["name"]), self.fence),
            )
            for entry in entries
        ]


def _numbered(parameters: Sequence[Mapping[str, Any]], first: int = 0) -> list[dict[str, Any]]:
    return [
        {"name": f"trial_{number:03d}", "parameters": values}
        for number, values in enumerate(parameters, first)
    ]


def sample_parameters(config: Config) -> list[dict[str, float]]:
    """The parameters of a study's trials, a function of its configuration alone.

    `random` samples learning rate and weight clip log-uniformly from their ranges, and final k
    from its values. `grid`, the paper's search, takes every final k with the configuration's own
    learning rate and weight clip; every trial evaluates all thresholds. `optuna` returns none:
    its trials are suggested one at a time.
    """
    search = config.search
    if search.algorithm == "optuna":
        return []
    if search.algorithm == "grid":
        return [{"logistic.final_k": k} for k in search.final_k]
    import numpy as np  # not in the base installation, which only reads studies

    rng = np.random.default_rng(search.seed)
    return [
        {
            "optimizer.learning_rate": _log_uniform(rng, search.learning_rate),
            "optimizer.weight_clip": _log_uniform(rng, search.weight_clip),
            "logistic.final_k": float(rng.choice(search.final_k)),
        }
        for _ in range(search.trials)
    ]


def best_epoch(epochs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The epoch with the best validation Jaccard; ties go to the earliest."""
    return max(epochs, key=lambda line: line["jaccard"], default=None)


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    import numpy as np

    low, high = np.log(bounds)
    return float(f"{np.exp(rng.uniform(low, high)):.4g}")


def _leaderboard_row(trial: Trial) -> TrialRow:
    epochs = trial.epoch_metrics()
    best = best_epoch(epochs) or {"jaccard": 0.0, "epoch": 0}
    checkpoint = trial.run.best_checkpoint()
    return TrialRow(
        trial=trial.name,
        parameters=trial.parameters,
        epochs=epochs[-1]["epoch"] if epochs else 0,
        jaccard=best["jaccard"],
        best_epoch=best["epoch"],
        threshold=best.get("threshold"),
        jaccard_at_config_threshold=best.get("jaccard_at_config_threshold"),
        jaccard_curve=best.get("jaccard_curve"),
        checkpoint=checkpoint.uri if checkpoint else None,
        **vars(trial.result()),
    )


def _identity(config: Config) -> dict[str, Any]:
    """The values that a resumed study must share; the variants of an ablation may grow."""
    return config_identity(config, "cluster", "ablation")
