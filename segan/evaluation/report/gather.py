"""The numbers of a report: of a run, of a study and its best run, or of an ensemble."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import yaml

from segan import storage
from segan.catalogue import changed, describe_run, no_run
from segan.config import Config
from segan.errors import UsageError
from segan.evaluation.report.findings import Findings, Plain
from segan.evaluation.report.rungs import Search, describe_search
from segan.inference.ensemble import Ensemble, is_ensemble, read_ensemble
from segan.runs import Checkpoint, Run, versions
from segan.search import STUDY, Study

Kind = Literal["run", "study", "ensemble"]


@dataclass(frozen=True)
class Subject:
    """What a report is of.

    Attributes:
        members: the checkpoint that is looked at, or the three of an ensemble.
        threshold: of the mean of the members' maps.
        run: where the checkpoint comes from; None of an ensemble.
    """

    kind: Kind
    uri: str
    members: tuple[Checkpoint, ...]
    threshold: float
    run: Run | None = None
    study: Study | None = None
    ensemble: Ensemble | None = None

    @property
    def config(self) -> Config:
        """Of its first member."""
        return self.members[0].config

    @property
    def records(self) -> str:
        """URI of the records that it was validated on."""
        return self.ensemble.records if self.ensemble else self.config.data.records


class Model(Plain):
    """A checkpoint that is looked at: `epoch` is the one it was saved after, `uri` where it was."""

    uri: str
    epoch: int
    threshold: float
    sha256: str


class Again(Plain):
    """What it takes to do it again.

    Attributes:
        command: with every key that is not the default.
        config: those keys, each with its value and the default.
        fingerprint: of the records.
        git_commit, packages, python, hardware, started: as it ran; of an ensemble, whose build
            keeps no note of them, those of the report's writing.
    """

    command: str
    config: dict[str, dict[str, Any]]
    records: str
    fingerprint: str
    git_commit: str | None
    packages: dict[str, str]
    python: str
    hardware: str | None
    started: str | None


class Report(Plain):
    """What report.json says. Fields may be added; those that are here keep name and meaning.

    Attributes:
        written: UTC.
        frame: width and height in pixels, of all that was scored.
        trained_on: name of the split, and `splits` how many images each has.
        epochs: lines of the run's metrics, with the learning rate; none of an ensemble.
        search: of a study.
    """

    kind: Kind
    uri: str
    written: str
    models: tuple[Model, ...]
    frame: dict[str, int]
    trained_on: str
    splits: dict[str, int]
    findings: Findings
    epochs: tuple[dict[str, Any], ...]
    search: Search | None
    again: Again


def find_subject(uri: str) -> Subject:
    """The run, study or ensemble at a URI.

    Raises:
        UsageError: it has no validated checkpoint yet.
        StorageError: there is none.
    """
    uri = storage.normalise(uri)
    storage.check_access(uri)
    if is_ensemble(uri):
        ensemble = read_ensemble(uri)
        members = tuple(ensemble.checkpoints(uri))
        return Subject("ensemble", uri, members, ensemble.threshold, ensemble=ensemble)
    if storage.exists(storage.join(uri, STUDY)):
        study = Study(uri)
        bests = [(trial.run, best) for trial in study.trials() if (best := trial.run.best())]
        if not bests:
            raise UsageError(f"{uri}: no trial has a validated checkpoint yet; report it later")
        run, best = max(bests, key=lambda one: one[1].jaccard)
        return Subject("study", uri, (best,), best.threshold, run, study)
    if not storage.exists(storage.join(uri, "run.json")):
        raise no_run(uri)
    run = Run(uri)
    if (found := run.best()) is None:
        raise UsageError(f"{uri}: no validated checkpoint yet; report it later")
    return Subject("run", uri, (found,), found.threshold, run)


def gather(subject: Subject, findings: Findings, splits: Mapping[str, int], records: str) -> Report:
    """All that there is to say; `splits` are the records' sizes, `records` their URI."""
    return Report(
        kind=subject.kind,
        uri=subject.uri,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        models=tuple(_model(subject, number) for number in range(len(subject.members))),
        frame=dict(zip(("width", "height"), subject.members[0].size, strict=True)),
        trained_on=subject.config.data.train,
        splits=dict(splits),
        findings=findings,
        epochs=tuple(describe_run(subject.run.uri)["epochs"]) if subject.run else (),
        search=describe_search(subject.study) if subject.study else None,
        again=_again(subject, records),
    )


def _model(subject: Subject, number: int) -> Model:
    member = subject.members[number]
    source = subject.ensemble.members[number].uri if subject.ensemble else member.uri
    return Model(
        uri=source,
        epoch=member.info["epochs"],
        threshold=member.threshold,
        sha256=member.files["segmentor.safetensors"]["sha256"],
    )


def _again(subject: Subject, records: str) -> Again:
    facts: dict[str, Any] = {"git_commit": None, "hardware": None, "started": None}
    facts |= {"packages": versions(), "python": platform.python_version()}
    if subject.run:
        found = subject.run.description()
        facts |= {key: found.get(key) for key in facts}
    if subject.ensemble:
        config: dict[str, Any] = {}
        words = ["segan ensemble build"]
        words += [f"--member {shlex.quote(member.uri)}" for member in subject.ensemble.members]
        words += [f"--records {shlex.quote(records)}", f"--out {shlex.quote(subject.uri)}"]
    else:
        config = changed(_asked(subject))
        verb = "tune" if subject.kind == "study" else "train"
        words = [f"segan {verb} {shlex.quote(subject.uri)}"]
        words += [shlex.quote(f"{key}={_word(both['value'])}") for key, both in config.items()]
    return Again(
        command=" \\\n    ".join(words),
        config=config,
        records=records,
        fingerprint=str(subject.members[0].info["fingerprint"]),
        **facts,
    )


def _asked(subject: Subject) -> dict[str, Any]:
    """The configuration that the command was given: a study's, not that of its trial."""
    tree = subject.config.model_dump(mode="json")
    if subject.study:
        for section, branch in subject.study.config().items():
            tree[section] = tree.get(section, {}) | branch
    return tree


def _word(value: Any) -> str:
    """A value as `segan` reads it on the command line: as YAML."""
    if isinstance(value, str) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value)
