"""Bringing checkpoints out of storage, and knowing that they are what was written.

Needs neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from segan import storage
from segan.catalogue import check_size, list_checkpoints, no_run
from segan.errors import StorageError, UsageError
from segan.inference.ensemble import is_ensemble, read_ensemble
from segan.runs import (
    BEST,
    LATEST,
    MANIFEST,
    Checkpoint,
    find_checkpoint,
    make_manifest,
    open_checkpoint,
)


@dataclass(frozen=True)
class Verified:
    """A file of a checkpoint; `wrong` says what was expected and found, or nothing."""

    uri: str
    size: int
    wrong: str


def checkpoints_at(uri: str) -> tuple[list[Checkpoint], list[str]]:
    """What there is to verify: a checkpoint, a run's, or an ensemble's members.

    Returns:
        The checkpoints, and what lies among a run's without a whole manifest.

    Raises:
        SeganError: there is no checkpoint here.
    """
    uri = storage.normalise(uri)
    storage.check_access(uri)
    if is_ensemble(uri):
        return read_ensemble(uri).checkpoints(uri), []
    if uri.endswith((f"/checkpoints/{BEST}", f"/checkpoints/{LATEST}")):
        return [find_checkpoint(uri)], []
    if storage.exists(storage.join(uri, MANIFEST)):
        return [open_checkpoint(uri)], []
    entries = list_checkpoints(uri)
    found = [entry.checkpoint for entry in entries if entry.checkpoint]
    if not found:
        if entries or storage.exists(storage.join(uri, "run.json")):
            raise StorageError(f"{uri}: a run without checkpoints, so there is nothing to verify")
        raise no_run(uri)
    return found, [f"{entry.name}: {entry.wrong}" for entry in entries if not entry.checkpoint]


def verify(
    checkpoint: Checkpoint, tell: Callable[[int], object] = lambda number: None
) -> Iterator[Verified]:
    """Reads every file that the manifest names; one of another size is not read.

    Args:
        tell: is given the number of bytes as they are read, or passed over.
    """
    sizes = {file.name: file.size for file in storage.list_files(checkpoint.uri)}
    for file, expected in checkpoint.files.items():
        uri = storage.join(checkpoint.uri, file)
        wrong = check_size(file, sizes.get(file), checkpoint)
        if wrong:
            tell(expected["size"])
        elif (found := storage.file_sha256(uri, tell)) != expected["sha256"]:
            wrong = f"{file}: expected sha256 {expected['sha256']}, found {found}"
        yield Verified(uri, expected["size"], wrong)


def choose_files(checkpoint: Checkpoint, only: Sequence[str]) -> list[str]:
    """The files by their names or what stands before the dot; all where none is named."""
    for name in only:
        if not any(name in (file, file.split(".")[0]) for file in checkpoint.files):
            raise UsageError(
                f"{checkpoint.uri}: no file {name!r}; expected one of {', '.join(checkpoint.files)}"
            )
    return [f for f in checkpoint.files if not only or f in only or f.split(".")[0] in only]


def pull(
    checkpoint: Checkpoint, folder: str, files: Sequence[str], tell: Callable[[int], None]
) -> list[str]:
    """Brings files of a checkpoint into a local folder, and last a manifest of those.

    Each file is checked against the manifest before it is put in place, so a pull that was
    interrupted leaves whole files alone, and goes on when it is asked for again.

    Args:
        tell: is given the number of bytes that are there, and that come.

    Returns:
        The files that were brought; the others were there already.

    Raises:
        UsageError: another file of the same name is in the folder; nothing was written.
        StorageError: a file is not what the manifest says, or cannot be read or written.
    """
    if storage.is_s3(folder):
        raise UsageError(f"{folder}: expected a local folder; a bucket's own tools copy to s3://")
    folder = storage.normalise(folder)
    manifest = _merged(checkpoint, folder, files)
    there = {file.name for file in storage.list_files(folder)} & set(files)
    for file in there:
        _check_same(checkpoint, folder, file)
    tell(sum(checkpoint.files[file]["size"] for file in there))
    missing = [file for file in files if file not in there]
    for file in missing:
        source, target = (storage.join(place, file) for place in (checkpoint.uri, folder))
        storage.download(source, target, checkpoint.files[file]["sha256"], tell)
    name = storage.join(folder, MANIFEST)
    if not (storage.exists(name) and storage.read_json(name) == manifest):
        storage.write_json(name, manifest)
    return missing


def _merged(checkpoint: Checkpoint, folder: str, files: Sequence[str]) -> dict[str, Any]:
    """The manifest of these files and of those that an earlier pull brought."""
    kept: set[str] = set()
    name = storage.join(folder, MANIFEST)
    if storage.exists(name):
        found = storage.read_json(name)
        same = isinstance(found, dict) and found.get("info") == checkpoint.info
        if not same or not found.get("files", {}).items() <= checkpoint.files.items():
            raise UsageError(f"{name}: not of {checkpoint.uri}; use an empty folder")
        kept = set(found["files"])
    entries = {f: entry for f, entry in checkpoint.files.items() if f in kept or f in files}
    return make_manifest(entries, checkpoint.info)


def _check_same(checkpoint: Checkpoint, folder: str, file: str) -> None:
    here, expected = storage.join(folder, file), checkpoint.files[file]["sha256"]
    if (found := storage.file_sha256(here)) != expected:
        raise UsageError(
            f"{here}: another file is here: expected sha256 {expected}, found {found}; remove it, "
            "or use another folder"
        )
