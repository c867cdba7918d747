"""What a tracker gets of a run or a study, read from storage alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from segan import storage
from segan.runs.driver_log import LOG_FILE
from segan.runs.listing import epoch_seconds
from segan.runs.run import REPORT_FILES, RUN_FILE, Run
from segan.runs.study import Study
from segan.runs.trial import TrialStatus, read_result

STUDY_FILES = (*REPORT_FILES, "leaderboard.json", LOG_FILE)
RUN_FILES = (*REPORT_FILES, LOG_FILE)
# Sections that say nothing about a single run.
_STUDY_SECTIONS = ("search", "ablation")
_UNTRACKED_SECTIONS = ("tracking",)


class MetricPoint(NamedTuple):
    """Metrics of one step or epoch.

    Attributes:
        samples: images seen by all workers, the x axis as in TensorBoard.
        seconds: of training and validation before the point, without interruptions.
        values: by `step/NAME` or `epoch/NAME`.
    """

    samples: int
    seconds: float
    values: dict[str, float]


@dataclass(frozen=True)
class TrackedItem:
    """A run or a study, as a tracker shows it.

    Attributes:
        group: name of the study that a trial belongs to, or of the study itself.
        params: configuration values by `section.key`.
        tags: where it is stored and what it was computed with.
        started_at: seconds since the epoch.
    """

    uri: str
    name: str
    kind: str
    group: str | None
    params: dict[str, Any]
    tags: dict[str, str]
    started_at: float


def iter_metrics(run: Run, after: int = -1) -> Iterator[MetricPoint]:
    """Yields the points of a run's stored metrics that are beyond `after` samples, in order."""
    seconds = 0.0
    for line in run.metrics():
        if line["kind"] == "epoch":
            seconds += epoch_seconds(line)
        if line["samples"] > after:
            yield MetricPoint(
                line["samples"],
                seconds,
                dict(_iter_numbers(line["kind"], line)),
            )


def _iter_numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers among metrics, and those of nested mappings, by `prefix/name`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _iter_numbers(f"{prefix}/{name}", value)
        elif isinstance(value, int | float) and name not in ("samples", "step"):
            yield f"{prefix}/{name}", value


def describe_run(run: Run, group: str | None = None) -> TrackedItem:
    """Describes a run that has been started."""
    description = run.description()
    fingerprint = description["identity"]["fingerprint"]
    facts = ("git_commit", "hardware", "python")
    tags = {name: description[name] for name in facts if description.get(name)}
    tags |= {f"version.{name}": text for name, text in description["packages"].items()}
    return TrackedItem(
        run.uri,
        storage.basename(run.uri),
        "trial" if group else "run",
        group,
        _flatten(description["config"], _STUDY_SECTIONS),
        {"uri": run.uri, "fingerprint": fingerprint, **tags},
        datetime.fromisoformat(description["started_at"]).timestamp(),
    )


def describe_study(study: Study, started_at: float) -> TrackedItem:
    """Describes a study that has been started; the time is that of its first trial."""
    name = storage.basename(study.uri)
    tags = {"uri": study.uri, "fingerprint": study.fingerprint() or "", "command": study.command()}
    return TrackedItem(study.uri, name, "study", name, _flatten(study.config()), tags, started_at)


def started_trials(study: Study) -> list[Run]:
    """The runs of the trials that have begun."""
    runs = [trial.run for trial in study.trials()]
    return [run for run in runs if storage.exists(storage.join(run.uri, RUN_FILE))]


def run_status(run: Run, item: TrackedItem) -> TrialStatus:
    """How a run or a trial ended."""
    status = read_result(run.uri).status
    if status is TrialStatus.UNFINISHED and item.kind == "run":
        epochs = [line["epoch"] for line in run.metrics() if line["kind"] == "epoch"]
        if epochs and epochs[-1] >= item.params["training.epochs"]:
            return TrialStatus.FINISHED
    return status


def stored_files(item: TrackedItem) -> dict[str, bytes]:
    """The files of an item that a tracker keeps, by name: report, log and metrics, no weights."""
    names = STUDY_FILES if item.kind == "study" else RUN_FILES
    uris = {name: storage.join(item.uri, name) for name in names}
    files = {name: storage.read_bytes(uri) for name, uri in uris.items() if storage.exists(uri)}
    if item.kind != "study":
        lines = Run(item.uri).metrics()
        files["metrics.jsonl"] = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    return files


def _flatten(
    config: Mapping[str, Mapping[str, Any]], excluded: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, branch in config.items()
        for key, value in branch.items()
        if section not in (*excluded, *_UNTRACKED_SECTIONS)
    }
