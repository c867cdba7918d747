"""What lies in storage: the runs below a prefix, and what there is to say of one.

One listing, then of each run its run.json and the manifests of its checkpoints: what is large is
never read. Needs neither torch nor Ray, and writes nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from segan import storage
from segan.errors import SeganError, StorageError, UsageError
from segan.runs.checkpoint import (
    BEST,
    LATEST,
    MANIFEST_FILE,
    Checkpoint,
    open_checkpoint,
    select_best,
    select_latest,
)
from segan.runs.run import RESULT_FILE, Run
from segan.storage.files import FileInfo
from segan.storage.lease import LEASE_FILE, parent_study_uri, read_holder

NUM_READ_THREADS = 16  # files are small and far away


@dataclass(frozen=True)
class CheckpointEntry:
    """A folder of a run's checkpoints.

    Attributes:
        checkpoint: what its manifest says; None where there is none.
        wrong: why it is not whole, or nothing. By names and sizes: no content is read.
        bytes: of all its files.
        names: `best` and `latest`, if it is that.
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
            "epoch": found.info.get("epochs") if found else None,
            "jaccard": found.jaccard if found and found.is_validated else None,
            "bytes": self.size,
            "whole": not self.error,
            "wrong": self.error,
            "is": list(self.aliases),
        }


@dataclass(frozen=True)
class RunSummary:
    """A run in a line.

    Attributes:
        name: relative to where it was looked for.
        epochs, asked: done, by its latest checkpoint, and to be done.
        jaccard, epoch: of its best checkpoint.
        state: finished, what a study says of a trial, or open: not over.
        host: of the driver that holds it or its study, if there is one.
        written: when its last file was, a holder's last sign with them.
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
    """The run at `uri` and those below it, a study's trials too, by name.

    Raises:
        StorageError: there is none.
    """
    uri = storage.normalise(uri)
    storage.check_access(uri)
    files = storage.list_files(uri)
    found = [file.name for file in files if re.search(r"(^|/)run\.json$", file.name)]
    folders = sorted(name.removesuffix("run.json").rstrip("/") for name in found)
    if not folders:
        raise StorageError(f"{uri}: no run here nor below (no run.json)")
    with ThreadPoolExecutor(NUM_READ_THREADS) as pool:
        return list(pool.map(lambda folder: _summarise(uri, folder, files), folders))


def list_checkpoints(uri: str, files: Sequence[FileInfo] | None = None) -> list[CheckpointEntry]:
    """The folders of a run's checkpoints by name, half ones too.

    Args:
        files: those of the run, where they have been listed already.
    """
    folder = storage.join(uri, "checkpoints")
    found = storage.list_files(folder) if files is None else _files_in_folder(files, "checkpoints")
    names = sorted({file.name.split("/")[0] for file in found if "/" in file.name})
    entries = [
        _checkpoint_entry(storage.join(folder, name), _files_in_folder(found, name))
        for name in names
    ]
    whole = [entry.checkpoint for entry in entries if entry.checkpoint]
    checkpoint_by_alias = {BEST: select_best(whole), LATEST: select_latest(whole)}
    return [
        replace(
            e,
            aliases=tuple(
                n for n, one in checkpoint_by_alias.items() if one and one is e.checkpoint
            ),
        )
        for e in entries
    ]


def describe_run(uri: str) -> dict[str, Any]:
    """All that a person may ask of a run: its summary, run.json, epochs and checkpoints."""
    run = Run(uri)
    description, files = run.description(), storage.list_files(run.uri)
    config = description["config"]
    return {
        "summary": vars(_summarise(run.uri, "", files)),
        "changed": non_default_values(config),
        "config": config,
        "fingerprint": description["identity"].get("fingerprint"),
        **{key: description.get(key) for key in ("git_commit", "python", "packages", "hardware")},
        "epochs": _epoch_metrics(run.metrics()),
        "checkpoints": [entry.to_dict() for entry in list_checkpoints(run.uri, files)],
    }


def non_default_values(config: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The keys of a configuration whose values are not the defaults, each with both."""
    from segan.config import Config

    defaults = Config().model_dump(mode="json")
    return {
        f"{section}.{key}": {"value": value, "default": defaults.get(section, {}).get(key)}
        for section, branch in config.items()
        for key, value in branch.items()
        if value != defaults.get(section, {}).get(key)
    }


def run_not_found(uri: str) -> SeganError:
    """The error that says what there is where a run was asked for."""
    from segan.runs.ensemble import ENSEMBLE_FILE

    run, inside, _ = uri.partition("/checkpoints/")
    if storage.exists(storage.join(uri, "study.json")):
        return UsageError(f"{uri}: a study, whose trials are runs; segan runs ls lists them")
    if storage.exists(storage.join(uri, ENSEMBLE_FILE)):
        return UsageError(f"{uri}: an ensemble and no run; its card.md describes it")
    if inside:
        return UsageError(f"{uri}: inside a run; expected the run's own URI, {run}")
    return StorageError(f"{uri}: no run here (no run.json); segan runs ls lists those below a URI")


def _summarise(uri: str, folder: str, files: Sequence[FileInfo]) -> RunSummary:
    place = storage.join(uri, folder) if folder else uri
    name, run_files = folder or storage.basename(uri), _files_in_folder(files, folder)
    try:
        description = Run(place).description()
        total_epochs, started = (
            int(description["config"]["training"]["epochs"]),
            description["started"],
        )
    except (StorageError, LookupError, TypeError):
        return RunSummary(place, name, "run.json is not a run's")
    last = max((file.last_modified for file in run_files if file.last_modified), default=None)
    by_alias = {n: e.checkpoint for e in list_checkpoints(place, run_files) for n in e.aliases}
    best, latest = by_alias.get(BEST), by_alias.get(LATEST)
    epochs = int(latest.info["epochs"]) if latest else 0
    return RunSummary(
        place,
        name,
        _run_state(place, run_files, epochs, total_epochs),
        started,
        last.isoformat(timespec="seconds") if last else None,
        epochs,
        total_epochs,
        best.jaccard if best else None,
        int(best.info["epochs"]) if best else None,
        latest.info["metrics"].get("images_per_second") if latest else None,
        _lease_host(uri, folder, files),
    )


def _lease_host(uri: str, folder: str, files: Sequence[FileInfo]) -> str | None:
    for held in (folder, parent_study_uri(folder)):
        if held is not None and any(
            file.name == LEASE_FILE for file in _files_in_folder(files, held)
        ):
            found = read_holder(storage.join(uri, held) if held else uri)
            return found.host if found else None
    return None


def _run_state(run: str, files: Sequence[FileInfo], epochs: int, total_epochs: int) -> str:
    if any(file.name == RESULT_FILE for file in files):
        return str(storage.read_json(storage.join(run, RESULT_FILE))["why"])
    return "finished" if epochs >= total_epochs else "open"


def _checkpoint_entry(uri: str, files: Sequence[FileInfo]) -> CheckpointEntry:
    name, total = storage.basename(uri), sum(file.size for file in files)
    sizes = {file.name: file.size for file in files}
    if MANIFEST_FILE not in sizes:
        return CheckpointEntry(name, None, f"no {MANIFEST_FILE}", total)
    try:
        checkpoint = open_checkpoint(uri)
    except StorageError as error:  # a training may have removed it since it was listed
        return CheckpointEntry(name, None, str(error), total)
    wrong = (check_size(file, sizes.get(file), checkpoint) for file in checkpoint.files)
    return CheckpointEntry(name, checkpoint, "; ".join(filter(None, wrong)), total)


def check_size(file: str, size: int | None, checkpoint: Checkpoint) -> str:
    """What is wrong with a file of this size, or nothing."""
    expected = checkpoint.files[file]["size"]
    if size is None:
        return f"{file}: expected {expected} bytes, found no such file"
    return "" if size == expected else f"{file}: expected {expected} bytes, found {size}"


def _files_in_folder(files: Sequence[FileInfo], folder: str) -> list[FileInfo]:
    """Of files sorted by name those in a folder, by their names in it."""
    if not folder:
        return list(files)
    start = bisect_left(files, f"{folder}/", key=lambda file: file.name)
    stop = bisect_left(files, f"{folder}0", key=lambda file: file.name)  # 0 follows / in order
    skipped = len(folder) + 1
    return [FileInfo(f.name[skipped:], f.size, f.last_modified) for f in files[start:stop]]


def _epoch_metrics(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The epochs' metrics, each with the learning rate of its last logged step."""
    rates = {line["epoch"]: line.get("learning_rate") for line in lines if line["kind"] == "step"}
    return [
        {key: value for key, value in line.items() if key not in ("kind", "jaccard_curve")}
        | {"learning_rate": rates.get(line["epoch"])}
        for line in lines
        if line["kind"] == "epoch"
    ]
