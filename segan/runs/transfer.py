"""Bringing checkpoints out of storage, and knowing that they are what was written.

Needs neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from segan import storage
from segan.errors import StorageError, UsageError
from segan.runs.checkpoint import (
    BEST,
    LATEST,
    MANIFEST_FILE,
    Checkpoint,
    make_manifest,
    open_checkpoint,
)
from segan.runs.ensemble import is_ensemble, read_ensemble
from segan.runs.listing import check_size, list_checkpoints, run_not_found
from segan.runs.run import find_checkpoint


@dataclass(frozen=True)
class FileCheck:
    """A file of a checkpoint; `wrong` says what was expected and found, or nothing."""

    uri: str
    size: int
    error: str


def find_checkpoints(uri: str) -> tuple[list[Checkpoint], list[str]]:
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
    if storage.exists(storage.join(uri, MANIFEST_FILE)):
        return [open_checkpoint(uri)], []
    entries = list_checkpoints(uri)
    found = [entry.checkpoint for entry in entries if entry.checkpoint]
    if not found:
        if entries or storage.exists(storage.join(uri, "run.json")):
            raise StorageError(f"{uri}: a run without checkpoints, so there is nothing to verify")
        raise run_not_found(uri)
    return found, [f"{entry.name}: {entry.error}" for entry in entries if not entry.checkpoint]


def verify_checkpoint(
    checkpoint: Checkpoint, on_progress: Callable[[int], object] = lambda number: None
) -> Iterator[FileCheck]:
    """Reads every file that the manifest names; one of another size is not read.

    Args:
        tell: is given the number of bytes as they are read, or passed over.
    """
    sizes = {file.name: file.size for file in storage.list_files(checkpoint.uri)}
    for file, expected in checkpoint.files.items():
        uri = storage.join(checkpoint.uri, file)
        error = check_size(file, sizes.get(file), checkpoint)
        if error:
            on_progress(expected["size"])
        elif (found := storage.file_sha256(uri, on_progress)) != expected["sha256"]:
            error = f"{file}: expected sha256 {expected['sha256']}, found {found}"
        yield FileCheck(uri, expected["size"], error)


def choose_files(checkpoint: Checkpoint, names: Sequence[str]) -> list[str]:
    """The files by their names or what stands before the dot; all where none is named."""
    for name in names:
        if not any(name in (file, file.split(".")[0]) for file in checkpoint.files):
            raise UsageError(
                f"{checkpoint.uri}: no file {name!r}; expected one of {', '.join(checkpoint.files)}"
            )
    return [f for f in checkpoint.files if not names or f in names or f.split(".")[0] in names]


def download_checkpoint(
    checkpoint: Checkpoint, folder: str, files: Sequence[str], on_progress: Callable[[int], None]
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
    manifest = _merge_manifests(checkpoint, folder, files)
    present = {file.name for file in storage.list_files(folder)} & set(files)
    for file in present:
        _check_existing_file(checkpoint, folder, file)
    on_progress(sum(checkpoint.files[file]["size"] for file in present))
    missing = [file for file in files if file not in present]
    for file in missing:
        source, target = (storage.join(place, file) for place in (checkpoint.uri, folder))
        storage.download(source, target, checkpoint.files[file]["sha256"], on_progress)
    name = storage.join(folder, MANIFEST_FILE)
    if not (storage.exists(name) and storage.read_json(name) == manifest):
        storage.write_json(name, manifest)
    return missing


def _merge_manifests(checkpoint: Checkpoint, folder: str, files: Sequence[str]) -> dict[str, Any]:
    """The manifest of these files and of those that an earlier pull brought."""
    kept: set[str] = set()
    name = storage.join(folder, MANIFEST_FILE)
    if storage.exists(name):
        found = storage.read_json(name)
        same = isinstance(found, dict) and found.get("info") == checkpoint.info
        if not same or not found.get("files", {}).items() <= checkpoint.files.items():
            raise UsageError(f"{name}: not of {checkpoint.uri}; use an empty folder")
        kept = set(found["files"])
    entries = {f: entry for f, entry in checkpoint.files.items() if f in kept or f in files}
    return make_manifest(entries, checkpoint.info)


def _check_existing_file(checkpoint: Checkpoint, folder: str, file: str) -> None:
    uri, expected = storage.join(folder, file), checkpoint.files[file]["sha256"]
    if (found := storage.file_sha256(uri)) != expected:
        raise UsageError(
            f"{uri}: another file is here: expected sha256 {expected}, found {found}; remove it, "
            "or use another folder"
        )
