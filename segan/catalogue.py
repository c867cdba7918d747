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
from segan.lease import LEASE, holder, study_of
from segan.runs import (
    BEST,
    LATEST,
    MANIFEST,
    RESULT,
    Checkpoint,
    Run,
    best_of,
    latest_of,
    open_checkpoint,
)
from segan.storage import StoredFile

READERS = 16  # files are small and far away


@dataclass(frozen=True)
class Entry:
    """A folder of a run's checkpoints.

    Attributes:
        checkpoint: what its manifest says; None where there is none.
        wrong: why it is not whole, or nothing. By names and sizes: no content is read.
        bytes: of all its files.
        names: `best` and `latest`, if it is that.
    """

    name: str
    checkpoint: Checkpoint | None
    wrong: str
    bytes: int
    names: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        found = self.checkpoint
        return {
            "name": self.name,
            "epoch": found.info.get("epochs") if found else None,
            "jaccard": found.jaccard if found and found.validated else None,
            "bytes": self.bytes,
            "whole": not self.wrong,
            "wrong": self.wrong,
            "is": list(self.names),
        }


@dataclass(frozen=True)
class Summary:
    """A run in a line.

    Attributes:
        name: relative to where it was looked for.
        epochs, asked: done, by its latest checkpoint, and to be done.
        jaccard, epoch: of its best checkpoint.
        state: finished, what a study says of a trial, or open: not over.
        host: of the driver that holds it or its study, if there is one.
        written: when its last file was, a holder's last sign with them.
    """

    run: str
    name: str
    state: str
    started: str | None = None
    written: str | None = None
    epochs: int = 0
    asked: int | None = None
    jaccard: float | None = None
    epoch: int | None = None
    images_per_second: float | None = None
    host: str | None = None


def find_runs(uri: str) -> list[Summary]:
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
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda folder: _summarise(uri, folder, files), folders))


def list_checkpoints(uri: str, files: Sequence[StoredFile] | None = None) -> list[Entry]:
    """The folders of a run's checkpoints by name, half ones too.

    Args:
        files: those of the run, where they have been listed already.
    """
    folder = storage.join(uri, "checkpoints")
    found = storage.list_files(folder) if files is None else _below(files, "checkpoints")
    names = sorted({file.name.split("/")[0] for file in found if "/" in file.name})
    entries = [_entry(storage.join(folder, name), _below(found, name)) for name in names]
    whole = [entry.checkpoint for entry in entries if entry.checkpoint]
    marks = {BEST: best_of(whole), LATEST: latest_of(whole)}
    return [
        replace(e, names=tuple(n for n, one in marks.items() if one and one is e.checkpoint))
        for e in entries
    ]


def describe_run(uri: str) -> dict[str, Any]:
    """All that a person may ask of a run: its summary, run.json, epochs and checkpoints."""
    run = Run(uri)
    description, files = run.description(), storage.list_files(run.uri)
    config = description["config"]
    return {
        "summary": vars(_summarise(run.uri, "", files)),
        "changed": changed(config),
        "config": config,
        "fingerprint": description["identity"].get("fingerprint"),
        **{key: description.get(key) for key in ("git_commit", "python", "packages", "hardware")},
        "epochs": _epochs(run.metrics()),
        "checkpoints": [entry.row() for entry in list_checkpoints(run.uri, files)],
    }


def changed(config: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The keys of a configuration whose values are not the defaults, each with both."""
    from segan.config import Config

    defaults = Config().model_dump(mode="json")
    return {
        f"{section}.{key}": {"value": value, "default": defaults.get(section, {}).get(key)}
        for section, branch in config.items()
        for key, value in branch.items()
        if value != defaults.get(section, {}).get(key)
    }


def no_run(uri: str) -> SeganError:
    """The error that says what there is where a run was asked for."""
    from segan.inference.ensemble import ENSEMBLE

    run, inside, _ = uri.partition("/checkpoints/")
    if storage.exists(storage.join(uri, "study.json")):
        return UsageError(f"{uri}: a study, whose trials are runs; segan runs ls lists them")
    if storage.exists(storage.join(uri, ENSEMBLE)):
        return UsageError(f"{uri}: an ensemble and no run; its card.md describes it")
    if inside:
        return UsageError(f"{uri}: inside a run; expected the run's own URI, {run}")
    return StorageError(f"{uri}: no run here (no run.json); segan runs ls lists those below a URI")


def _summarise(uri: str, folder: str, files: Sequence[StoredFile]) -> Summary:
    place = storage.join(uri, folder) if folder else uri
    name, mine = folder or storage.basename(uri), _below(files, folder)
    try:
        description = Run(place).description()
        asked, started = int(description["config"]["training"]["epochs"]), description["started"]
    except (StorageError, LookupError, TypeError):
        return Summary(place, name, "run.json is not a run's")
    last = max((file.modified for file in mine if file.modified), default=None)
    marked = {n: e.checkpoint for e in list_checkpoints(place, mine) for n in e.names}
    best, latest = marked.get(BEST), marked.get(LATEST)
    epochs = int(latest.info["epochs"]) if latest else 0
    return Summary(
        place,
        name,
        _state(place, mine, epochs, asked),
        started,
        last.isoformat(timespec="seconds") if last else None,
        epochs,
        asked,
        best.jaccard if best else None,
        int(best.info["epochs"]) if best else None,
        latest.info["metrics"].get("images_per_second") if latest else None,
        _host(uri, folder, files),
    )


def _host(uri: str, folder: str, files: Sequence[StoredFile]) -> str | None:
    for held in (folder, study_of(folder)):
        if held is not None and any(file.name == LEASE for file in _below(files, held)):
            found = holder(storage.join(uri, held) if held else uri)
            return found.host if found else None
    return None


def _state(run: str, files: Sequence[StoredFile], epochs: int, asked: int) -> str:
    if any(file.name == RESULT for file in files):
        return str(storage.read_json(storage.join(run, RESULT))["why"])
    return "finished" if epochs >= asked else "open"


def _entry(uri: str, files: Sequence[StoredFile]) -> Entry:
    name, total = storage.basename(uri), sum(file.size for file in files)
    sizes = {file.name: file.size for file in files}
    if MANIFEST not in sizes:
        return Entry(name, None, f"no {MANIFEST}", total)
    try:
        checkpoint = open_checkpoint(uri)
    except StorageError as error:  # a training may have removed it since it was listed
        return Entry(name, None, str(error), total)
    wrong = (check_size(file, sizes.get(file), checkpoint) for file in checkpoint.files)
    return Entry(name, checkpoint, "; ".join(filter(None, wrong)), total)


def check_size(file: str, size: int | None, checkpoint: Checkpoint) -> str:
    """What is wrong with a file of this size, or nothing."""
    expected = checkpoint.files[file]["size"]
    if size is None:
        return f"{file}: expected {expected} bytes, found no such file"
    return "" if size == expected else f"{file}: expected {expected} bytes, found {size}"


def _below(files: Sequence[StoredFile], folder: str) -> list[StoredFile]:
    """Of files sorted by name those in a folder, by their names in it."""
    if not folder:
        return list(files)
    start = bisect_left(files, f"{folder}/", key=lambda file: file.name)
    stop = bisect_left(files, f"{folder}0", key=lambda file: file.name)  # 0 follows / in order
    skipped = len(folder) + 1
    return [StoredFile(f.name[skipped:], f.size, f.modified) for f in files[start:stop]]


def _epochs(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The epochs' metrics, each with the learning rate of its last logged step."""
    rates = {line["epoch"]: line.get("learning_rate") for line in lines if line["kind"] == "step"}
    return [
        {key: value for key, value in line.items() if key not in ("kind", "jaccard_curve")}
        | {"learning_rate": rates.get(line["epoch"])}
        for line in lines
        if line["kind"] == "epoch"
    ]
