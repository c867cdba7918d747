"""Downloads checkpoints, ensembles and reports, and verifies weights against their checksums.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
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
    check_size,
    make_manifest,
    open_checkpoint,
)
from segan.runs.ensemble import CARD_FILE, ENSEMBLE_FILE, is_ensemble, read_ensemble
from segan.runs.listing import list_checkpoints, run_not_found
from segan.runs.run import REPORT_FILES, RUN_FILE, find_checkpoint
from segan.runs.shipped import locate_model
from segan.runs.study import STUDY_FILE, Study
from segan.storage.lease import hold_lease


@dataclass(frozen=True)
class FileCheck:
    """A verified file of a checkpoint.

    Attributes:
        size: in bytes, by the manifest.
        error: what was expected and found; "" if the file is intact.
    """

    uri: str
    size: int
    error: str


def find_checkpoints(uri: str) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints to verify: one, all of a run's, or an ensemble's members.

    Args:
        uri: of one of these, or the name of a model that ships with segan.

    Returns:
        The checkpoints, and a message for each of a run's folders without a valid manifest.

    Raises:
        SeganError: there is no checkpoint here.
    """
    _, uri = locate_model(uri)
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
        if entries or storage.exists(storage.join(uri, RUN_FILE)):
            raise StorageError(f"{uri}: a run without a complete checkpoint; nothing to verify")
        raise run_not_found(uri)
    return found, [f"{entry.name}: {entry.error}" for entry in entries if not entry.checkpoint]


def verify_checkpoint(
    checkpoint: Checkpoint, on_progress: Callable[[int], object] = lambda _: None
) -> Iterator[FileCheck]:
    """Compares every file with the manifest, first its size, then its SHA-256.

    Args:
        on_progress: is called with numbers of bytes read or skipped.
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


def find_model(uri: str, name: str | None = None) -> Checkpoint:
    """The checkpoint to download: of a run, of a study's best trial, or the one at the URI.

    Args:
        name: see `find_checkpoint`; None or best for a study.

    Raises:
        UsageError: the study has no validated checkpoint yet, or `name` does not fit the URI.
        StorageError: there is no checkpoint.
    """
    place = storage.normalise(uri)
    storage.check_access(place)
    if not storage.exists(storage.join(place, STUDY_FILE)):
        return find_checkpoint(place, name)
    if name not in (None, BEST):
        raise UsageError(f"{place}: a study, of which only the best is known; name a trial instead")
    if (found := Study(place).best_run()) is None:
        raise UsageError(f"{place}: no trial has a validated checkpoint yet; try again later")
    return found[1]


def choose_files(checkpoint: Checkpoint, names: Sequence[str]) -> list[str]:
    """The checkpoint's files with these names or stems; all if `names` is empty.

    Raises:
        UsageError: the checkpoint has no such file.
    """
    for name in names:
        if not any(name in (file, file.split(".")[0]) for file in checkpoint.files):
            expected = ", ".join([*checkpoint.files, MANIFEST_FILE])
            raise UsageError(f"{checkpoint.uri}: no file {name!r}; expected one of {expected}")
    return [f for f in checkpoint.files if not names or f in names or f.split(".")[0] in names]


def download_ensemble(
    uri: str, folder: str, on_progress: Callable[[int], None] = lambda _: None
) -> list[str]:
    """Downloads an ensemble: its members' weights, its card, and ensemble.json last.

    Files that are present are kept, as in `download_checkpoint`.

    Args:
        on_progress: is called with numbers of bytes of weights, present or downloaded.

    Returns:
        The files that were downloaded; the others were present.

    Raises:
        UsageError, StorageError: see `download_checkpoint`.
    """
    uri = storage.normalise(uri)
    checkpoints = read_ensemble(uri).checkpoints(uri)
    with _hold_folder(folder) as place:
        _refuse_other(storage.join(uri, ENSEMBLE_FILE), place)
        missing = []
        for checkpoint in checkpoints:
            member = storage.basename(checkpoint.uri)
            target = storage.join(place, member)
            names = _download_files(checkpoint, target, [*checkpoint.files], on_progress)
            missing += [f"{member}/{name}" for name in names]
        return missing + _copy_documents(uri, place, [CARD_FILE, ENSEMBLE_FILE])


def download_report(uri: str, folder: str) -> list[str]:
    """Downloads the report of a run, a study or an ensemble: report.json and report.html.

    Returns:
        The files that were downloaded; the others were present.

    Raises:
        UsageError: see `download_checkpoint`.
        StorageError: there is no report, or it cannot be read or written.
    """
    uri = storage.normalise(uri)
    storage.check_access(uri)
    if not storage.exists(storage.join(uri, REPORT_FILES[-1])):  # written last
        raise StorageError(f"{uri}: no report here; write one with `segan report {uri}`")
    with _hold_folder(folder) as place:
        return _copy_documents(uri, place, REPORT_FILES)


def download_checkpoint(
    checkpoint: Checkpoint, folder: str, files: Sequence[str], on_progress: Callable[[int], None]
) -> list[str]:
    """Downloads files of a checkpoint into a local folder, then writes their manifest.

    Each file is verified before it gets its name, and files that are present are kept, so an
    interrupted download resumes when it is called again.

    Args:
        on_progress: is called with numbers of bytes that are present or downloaded.

    Returns:
        The files that were downloaded; the others were present.

    Raises:
        UsageError: the folder has another file of the same name, or another process writes
            there; nothing was written.
        StorageError: a file fails its checksum, or cannot be read or written.
    """
    with _hold_folder(folder) as place:
        return _download(checkpoint, place, files, on_progress)


@contextlib.contextmanager
def _hold_folder(folder: str) -> Iterator[str]:
    """Keeps other processes from writing into a local folder; yields its path."""
    if storage.is_s3(folder):
        raise UsageError(f"{folder}: expected a local folder; copy to s3:// with the S3 tools")
    with hold_lease(folder):
        yield storage.normalise(folder)


def _download(
    checkpoint: Checkpoint, folder: str, files: Sequence[str], on_progress: Callable[[int], None]
) -> list[str]:
    manifest = _merge_manifests(checkpoint, folder, files)
    missing = _download_files(checkpoint, folder, files, on_progress)
    name = storage.join(folder, MANIFEST_FILE)
    if not (storage.exists(name) and storage.read_json(name) == manifest):
        storage.write_json(name, manifest)
    return missing


def _download_files(
    checkpoint: Checkpoint, folder: str, files: Sequence[str], on_progress: Callable[[int], None]
) -> list[str]:
    """Downloads the files that are missing, verifies those that are present; returns the former."""
    present = {file.name for file in storage.list_files(folder)} & set(files)
    for file in present:
        _check_existing_file(checkpoint, folder, file)
    on_progress(sum(checkpoint.files[file]["size"] for file in present))
    missing = [file for file in files if file not in present]
    for file in missing:
        source, target = (storage.join(uri, file) for uri in (checkpoint.uri, folder))
        storage.download(source, target, checkpoint.files[file]["sha256"], on_progress)
    return missing


def _copy_documents(uri: str, folder: str, names: Sequence[str]) -> list[str]:
    """Copies small files without checksums, in this order; returns those that were missing."""
    for name in names:
        _refuse_other(storage.join(uri, name), folder)
    missing = [name for name in names if not storage.exists(storage.join(folder, name))]
    for name in missing:
        storage.write_bytes(storage.join(folder, name), storage.read_bytes(storage.join(uri, name)))
    return missing


def _refuse_other(source: str, folder: str) -> None:
    """Raises UsageError where a folder has another file of the same name as `source`."""
    target = storage.join(folder, storage.basename(source))
    if storage.exists(target) and storage.read_bytes(target) != storage.read_bytes(source):
        raise UsageError(f"{target}: differs from {source}; delete it, or use another folder")


def _merge_manifests(checkpoint: Checkpoint, folder: str, files: Sequence[str]) -> dict[str, Any]:
    """The manifest of these files and of those that an earlier download brought."""
    kept: set[str] = set()
    name = storage.join(folder, MANIFEST_FILE)
    if storage.exists(name):
        found = storage.read_json(name)
        content = found if isinstance(found, dict) else {}
        files_found = content.get("files")
        is_part = (
            content.get("info") == checkpoint.info.to_json()
            and isinstance(files_found, dict)
            and files_found.items() <= checkpoint.files.items()
        )
        if not is_part:
            raise UsageError(
                f"{name}: of another checkpoint than {checkpoint.uri}; use an empty folder"
            )
        kept = set(content["files"])
    entries = {f: entry for f, entry in checkpoint.files.items() if f in kept or f in files}
    return make_manifest(entries, checkpoint.info)


def _check_existing_file(checkpoint: Checkpoint, folder: str, file: str) -> None:
    uri, expected = storage.join(folder, file), checkpoint.files[file]["sha256"]
    if (found := storage.file_sha256(uri)) != expected:
        raise UsageError(
            f"{uri}: another file exists here: expected sha256 {expected}, found {found}; delete "
            "it, or use another folder"
        )
