"""Lists the runs and checkpoints under a URI and summarises each of them.

Lists the files once, then reads run.json and the manifests of each run: small files only. Imports
neither torch nor Ray, and writes nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segan import storage
from segan.errors import SeganError, StorageError, UsageError
from segan.runs.checkpoint import (
    BEST,
    LATEST,
    MANIFEST_FILE,
    Checkpoint,
    check_size,
    open_checkpoint,
    select_best,
    select_latest,
)
from segan.runs.run import RUN_FILE, Run
from segan.runs.trial import RESULT_FILE, TrialStatus, read_result
from segan.storage.files import FileInfo
from segan.storage.lease import LEASE_FILE, parent_study_uri, read_holder

INVALID = "invalid"  # state of a run whose run.json or result.json cannot be read


@dataclass(frozen=True)
class CheckpointEntry:
    """A folder among a run's checkpoints.

    Attributes:
        checkpoint: None where the folder has no valid manifest.
        error: why the checkpoint is incomplete, by names and sizes alone; "" if it is complete.
        size: bytes of all files.
        aliases: of `best` and `latest` those that stand for it.
    """

    name: str
    checkpoint: Checkpoint | None
    error: str
    size: int
    aliases: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        found = self.checkpoint
        return {
            "name": self.name,
            "epoch": found.info.epochs if found else None,
            "jaccard": found.jaccard if found and found.is_validated else None,
            "size": self.size,
            "complete": not self.error,
            "error": self.error,
            "aliases": list(self.aliases),
        }


@dataclass(frozen=True)
class RunSummary:
    """A row of `segan runs ls`.

    Attributes:
        name: relative to the URI that was listed.
        state: a `TrialStatus`, or `INVALID`.
        last_modified: time of its newest file; a running driver's heartbeat counts.
        epochs: completed by the latest checkpoint, of `total_epochs`.
        jaccard, best_epoch: of the best checkpoint.
        host: of the driver that holds the lease of the run or its study.
    """

    uri: str
    name: str
    state: str
    started_at: str | None = None
    last_modified: str | None = None
    epochs: int = 0
    total_epochs: int | None = None
    jaccard: float | None = None
    best_epoch: int | None = None
    images_per_second: float | None = None
    host: str | None = None


def find_runs(uri: str) -> list[RunSummary]:
    """The run at `uri` and all runs below it, including a study's trials, by name.

    Raises:
        StorageError: there is none.
    """
    uri = storage.normalise(uri)
    storage.check_access(uri)
    files = storage.list_files(uri)
    found = [file.name for file in files if re.search(rf"(^|/){re.escape(RUN_FILE)}$", file.name)]
    folders = sorted(name.removesuffix(RUN_FILE).rstrip("/") for name in found)
    if not folders:
        raise StorageError(f"{uri}: no run here or below (no {RUN_FILE})")
    return storage.map_in_threads(lambda folder: _summarise(uri, folder, files), folders)


def open_run(uri: str) -> Run:
    """The run at a URI; raises a SeganError that names what is there instead."""
    uri = storage.normalise(uri)
    storage.check_access(uri)
    if not storage.exists(storage.join(uri, RUN_FILE)):
        raise run_not_found(uri)
    return Run(uri)


def list_checkpoints(uri: str, files: Sequence[FileInfo] | None = None) -> list[CheckpointEntry]:
    """The folders of a run's checkpoints by name, including incomplete ones.

    Args:
        files: the run's files, if they are already listed.
    """
    folder = storage.join(uri, "checkpoints")
    found = storage.list_files(folder) if files is None else _files_in_folder(files, "checkpoints")
    names = sorted({file.name.split("/")[0] for file in found if "/" in file.name})
    entries = [
        _checkpoint_entry(storage.join(folder, name), _files_in_folder(found, name))
        for name in names
    ]
    complete = [entry.checkpoint for entry in entries if entry.checkpoint]
    by_alias = {BEST: select_best(complete), LATEST: select_latest(complete)}
    return [
        replace(e, aliases=tuple(a for a, c in by_alias.items() if c and c is e.checkpoint))
        for e in entries
    ]


def describe_run(run: Run) -> dict[str, Any]:
    """The content of `segan runs show`: summary, run.json, epochs and checkpoints."""
    description, files = run.description(), storage.list_files(run.uri)
    config = description["config"]
    return {
        "summary": vars(_summarise(run.uri, "", files)),
        "non_default": non_default_values(config),
        "config": config,
        "fingerprint": description["identity"].get("fingerprint"),
        **{
            key: description.get(key)
            for key in ("git_commit", "python", "packages", "hardware", "device")
        },
        "epochs": epoch_rows(run),
        "checkpoints": [entry.to_dict() for entry in list_checkpoints(run.uri, files)],
    }


def epoch_rows(run: Run) -> list[dict[str, Any]]:
    """The metrics of each epoch, with the learning rate of its last logged step."""
    lines = run.metrics()
    rates = {line["epoch"]: line.get("learning_rate") for line in lines if line["kind"] == "step"}
    return [
        {key: value for key, value in line.items() if key not in ("kind", "jaccard_curve")}
        | {"learning_rate": rates.get(line["epoch"])}
        for line in lines
        if line["kind"] == "epoch"
    ]


def epoch_seconds(line: Mapping[str, Any]) -> float:
    """The duration of an epoch and its validation, from its line of metrics.jsonl."""
    return float(line["seconds"]) + float((line.get("stage_seconds") or {}).get("validation", 0.0))


def non_default_values(config: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`value` and `default` of each key of a configuration that has not its default value."""
    from segan.config import Config

    defaults = Config().model_dump(mode="json")
    return {
        f"{section}.{key}": {"value": value, "default": defaults.get(section, {}).get(key)}
        for section, branch in config.items()
        for key, value in branch.items()
        if value != defaults.get(section, {}).get(key)
    }


def run_not_found(uri: str) -> SeganError:
    """The error for a URI that is not a run's; it names what is there instead."""
    from segan.runs.ensemble import ENSEMBLE_FILE  # slow to import, as is the next
    from segan.runs.study import STUDY_FILE

    run, inside, _ = uri.partition("/checkpoints/")
    if storage.exists(storage.join(uri, STUDY_FILE)):
        return UsageError(f"{uri}: a study, not a run; list its trials with segan runs ls")
    if storage.exists(storage.join(uri, ENSEMBLE_FILE)):
        return UsageError(f"{uri}: an ensemble, not a run; its card.md describes it")
    if inside:
        return UsageError(f"{uri}: inside a run; expected the run's own URI, {run}")
    return StorageError(
        f"{uri}: no run here (no {RUN_FILE}); list the runs below a URI with segan runs ls"
    )


def _summarise(uri: str, folder: str, files: Sequence[FileInfo]) -> RunSummary:
    run_uri = storage.join(uri, folder) if folder else uri
    name, run_files = folder or storage.basename(uri), _files_in_folder(files, folder)
    try:
        description = Run(run_uri).description()
        total_epochs = int(description["config"]["training"]["epochs"])
        started_at = description["started_at"]
        has_result = any(file.name == RESULT_FILE for file in run_files)
        status = read_result(run_uri).status if has_result else TrialStatus.UNFINISHED
        checkpoints = list_checkpoints(run_uri, run_files)
        host = _lease_host(uri, folder, files)
    except (SeganError, LookupError, TypeError, ValueError, ArithmeticError):
        return RunSummary(run_uri, name, INVALID)
    modified = max((file.last_modified for file in run_files if file.last_modified), default=None)
    by_alias = {a: e.checkpoint for e in checkpoints for a in e.aliases}
    best, latest = by_alias.get(BEST), by_alias.get(LATEST)
    epochs = latest.info.epochs if latest else 0
    if not has_result and epochs >= total_epochs:
        status = TrialStatus.FINISHED
    return RunSummary(
        run_uri,
        name,
        status,
        started_at,
        modified.isoformat(timespec="seconds") if modified else None,
        epochs,
        total_epochs,
        best.jaccard if best else None,
        best.info.epochs if best else None,
        latest.info.metrics.get("images_per_second") if latest else None,
        host,
    )


def _lease_host(uri: str, folder: str, files: Sequence[FileInfo]) -> str | None:
    for held in (folder, parent_study_uri(folder)):
        if held is not None and any(
            file.name == LEASE_FILE for file in _files_in_folder(files, held)
        ):
            holder = read_holder(storage.join(uri, held) if held else uri)
            return holder.host if holder else None
    return None


def _checkpoint_entry(uri: str, files: Sequence[FileInfo]) -> CheckpointEntry:
    name, total = storage.basename(uri), sum(file.size for file in files)
    sizes = {file.name: file.size for file in files}
    if MANIFEST_FILE not in sizes:
        return CheckpointEntry(name, None, f"no {MANIFEST_FILE}", total)
    try:
        checkpoint = open_checkpoint(uri)
    except SeganError as error:  # corrupted, or deleted by a running training since the listing
        return CheckpointEntry(name, None, str(error), total)
    errors = (check_size(file, sizes.get(file), checkpoint) for file in checkpoint.files)
    return CheckpointEntry(name, checkpoint, "; ".join(filter(None, errors)), total)


def _files_in_folder(files: Sequence[FileInfo], folder: str) -> list[FileInfo]:
    """The files in a folder, with names relative to it, from files sorted by name."""
    if not folder:
        return list(files)
    start = bisect_left(files, f"{folder}/", key=lambda file: file.name)
    stop = bisect_left(files, f"{folder}0", key=lambda file: file.name)  # 0 follows / in ASCII
    skipped = len(folder) + 1
    return [FileInfo(f.name[skipped:], f.size, f.last_modified) for f in files[start:stop]]
