"""The content of report.json for a run, a study (its best run) or an ensemble."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from segan import storage
from segan.config import Config, format_value
from segan.errors import UsageError
from segan.evaluation.result import EvaluationResult
from segan.report.search import SearchSummary, summarise_search
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint
from segan.runs.ensemble import Ensemble, is_ensemble, read_ensemble
from segan.runs.listing import epoch_rows, non_default_values, open_run
from segan.runs.provenance import package_versions
from segan.runs.run import Run
from segan.runs.study import STUDY_FILE, Study
from segan.utils.models import FrozenModel

TargetKind = Literal["run", "study", "ensemble"]


@dataclass(frozen=True)
class ReportTarget:
    """The run, study or ensemble that is reported.

    Attributes:
        members: the best checkpoint, or the members of an ensemble.
        thresholds: of each class, for the members' mean map.
        labels: names of the classes.
        run: of the checkpoint; None for an ensemble.
    """

    kind: TargetKind
    uri: str
    members: tuple[Checkpoint, ...]
    thresholds: tuple[float, ...]
    labels: tuple[str, ...]
    run: Run | None = None
    study: Study | None = None
    ensemble: Ensemble | None = None

    @property
    def config(self) -> Config:
        """The configuration of the first member."""
        return self.members[0].config

    @property
    def records(self) -> str:
        """URI of the records that the model was validated on."""
        return self.ensemble.records if self.ensemble else self.config.data.records


class ModelInfo(FrozenModel):
    """An evaluated checkpoint.

    Attributes:
        uri: of the checkpoint in its run, also for a member of an ensemble.
        epoch: epochs completed when it was saved.
        sha256: of the segmentor's weights.
    """

    uri: str
    epoch: int
    threshold: float
    sha256: str


class Provenance(FrozenModel):
    """What is needed to reproduce the model.

    Attributes:
        command: with every configuration key that differs from the default.
        config: these keys, each with its `value` and `default`.
        fingerprint: of the records.
        git_commit, packages, python, hardware, started_at: of the run. For an ensemble packages
            and python are those of the report, because its build does not record them.
    """

    command: str
    config: dict[str, dict[str, Any]]
    records: str
    fingerprint: str
    git_commit: str | None
    packages: dict[str, str]
    python: str
    hardware: str | None
    started_at: str | None


class Report(FrozenModel):
    """The content of report.json. Fields may be added; existing ones keep name and meaning.

    Attributes:
        written_at: UTC.
        frame: width and height in pixels of the scored images.
        train_split: name of the training split.
        splits: number of images in each split.
        epochs: the run's metrics of each epoch; empty for an ensemble.
        search: only for a study.
    """

    kind: TargetKind
    uri: str
    written_at: str
    models: tuple[ModelInfo, ...]
    frame: dict[str, int]
    train_split: str
    splits: dict[str, int]
    result: EvaluationResult
    epochs: tuple[dict[str, Any], ...]
    search: SearchSummary | None
    provenance: Provenance


def find_target(uri: str) -> ReportTarget:
    """The run, study or ensemble at a URI.

    Raises:
        UsageError: it has no validated checkpoint yet.
        StorageError: there is no run, study or ensemble at the URI.
    """
    uri = storage.normalise(uri)
    storage.check_access(uri)
    if is_ensemble(uri):
        ensemble = read_ensemble(uri)
        members = tuple(ensemble.checkpoints(uri))
        return ReportTarget(
            "ensemble", uri, members, ensemble.thresholds, ensemble.labels, ensemble=ensemble
        )
    if storage.exists(storage.join(uri, STUDY_FILE)):
        study = Study(uri)
        if (found := study.best_run()) is None:
            raise UsageError(f"{uri}: no trial has a validated checkpoint yet; try again later")
        trial_run, checkpoint = found
        members = (checkpoint,)
        return ReportTarget(
            "study", uri, members, checkpoint.thresholds, checkpoint.labels, trial_run, study
        )
    run = open_run(uri)
    if (best := run.best_checkpoint()) is None:
        raise UsageError(f"{uri}: no validated checkpoint yet; try again later")
    return ReportTarget("run", uri, (best,), best.thresholds, best.labels, run)


def build_report(
    target: ReportTarget, result: EvaluationResult, splits: Mapping[str, int], records: str
) -> Report:
    """The report of an evaluation.

    Args:
        splits: number of images in each split of the records.
        records: their URI.
    """
    return Report(
        kind=target.kind,
        uri=target.uri,
        written_at=datetime.now(UTC).isoformat(timespec="seconds"),
        models=tuple(_model_info(target, number) for number in range(len(target.members))),
        frame=dict(zip(("width", "height"), target.members[0].frame_size, strict=True)),
        train_split=target.config.data.train,
        splits=dict(splits),
        result=result,
        epochs=tuple(epoch_rows(target.run)) if target.run else (),
        search=summarise_search(target.study) if target.study else None,
        provenance=_make_provenance(target, records),
    )


def _model_info(target: ReportTarget, number: int) -> ModelInfo:
    member = target.members[number]
    source = target.ensemble.members[number].uri if target.ensemble else member.uri
    return ModelInfo(
        uri=source,
        epoch=member.info.epochs,
        threshold=member.threshold,
        sha256=member.entry(SEGMENTOR_FILE)["sha256"],
    )


def _make_provenance(target: ReportTarget, records: str) -> Provenance:
    facts: dict[str, Any] = {"git_commit": None, "hardware": None, "started_at": None}
    facts |= {"packages": package_versions(), "python": platform.python_version()}
    if target.run:
        description = target.run.description()
        facts |= {key: description.get(key) for key in facts}
    if target.ensemble:
        config: dict[str, Any] = {}
        arguments = ["segan ensemble build"]
        arguments += [f"--member {shlex.quote(member.uri)}" for member in target.ensemble.members]
        arguments += [f"--records {shlex.quote(records)}", f"--out {shlex.quote(target.uri)}"]
    else:
        config = non_default_values(_requested_config(target))
        verb = target.study.command() if target.study else "train"
        arguments = [f"segan {verb} {shlex.quote(target.uri)}"]
        arguments += [
            shlex.quote(f"{key}={format_value(values['value'])}") for key, values in config.items()
        ]
    return Provenance(
        command=" \\\n    ".join(arguments),
        config=config,
        records=records,
        fingerprint=target.members[0].info.fingerprint,
        **facts,
    )


def _requested_config(target: ReportTarget) -> dict[str, Any]:
    """The configuration that the command was given: the study's, not that of its best trial."""
    return target.study.config() if target.study else target.config.model_dump(mode="json")
