"""The challenge's official files, by their published names, into a folder or a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from segan import storage
from segan.data.download import partial
from segan.data.download.remote import (
    ChangedError,
    Log,
    RemoteFile,
    RemoteVersion,
    iter_bytes,
    open_remote,
    stat,
)
from segan.errors import StorageError, UsageError

ISIC_BASE_URL = "https://isic-challenge-data.s3.amazonaws.com"
MAX_VERSIONS = 3  # of one file in one command, before it is given up

Progress = Callable[[str, int, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class ChallengeDataset:
    """Task 1 of a year's challenge: where it is served, and its files."""

    base_url: str
    files: tuple[str, ...]


DATASETS = {
    "isic2016": ChallengeDataset(
        f"{ISIC_BASE_URL}/2016",
        (
            "ISBI2016_ISIC_Part1_Training_Data.zip",
            "ISBI2016_ISIC_Part1_Training_GroundTruth.zip",
            "ISBI2016_ISIC_Part1_Test_Data.zip",
            "ISBI2016_ISIC_Part1_Test_GroundTruth.zip",
        ),
    ),
    "isic2017": ChallengeDataset(
        f"{ISIC_BASE_URL}/2017",
        (
            "ISIC-2017_Training_Data.zip",
            "ISIC-2017_Training_Part1_GroundTruth.zip",
            "ISIC-2017_Validation_Data.zip",
            "ISIC-2017_Validation_Part1_GroundTruth.zip",
            "ISIC-2017_Test_v2_Data.zip",
            "ISIC-2017_Test_v2_Part1_GroundTruth.zip",
        ),
    ),
    "isic2018": ChallengeDataset(
        f"{ISIC_BASE_URL}/2018",
        (
            "ISIC2018_Task1-2_Training_Input.zip",
            "ISIC2018_Task1_Training_GroundTruth.zip",
            "ISIC2018_Task1-2_Validation_Input.zip",
            "ISIC2018_Task1_Validation_GroundTruth.zip",
            "ISIC2018_Task1-2_Test_Input.zip",
            "ISIC2018_Task1_Test_GroundTruth.zip",
        ),
    ),
}


@dataclass(frozen=True)
class FetchResult:
    """A file that is here now; `resumed` are the bytes that an earlier command had left."""

    file: str
    uri: str
    bytes: int
    skipped: bool
    resumed_bytes: int


def get_dataset(name: str) -> ChallengeDataset:
    if name not in DATASETS:
        raise UsageError(f"no data set {name!r}; expected one of {', '.join(DATASETS)}")
    return DATASETS[name]


def fetch_files(
    files: Sequence[str], base_url: str, out: str, progress: Progress, log: Log
) -> Iterator[FetchResult]:
    """Brings each file from below `base` to below `place`; one that is there whole is left alone.

    All are looked at before the first is read, so that what is missing is said at once. Stopped at
    any moment, a second call goes on from there. `progress(what, total, done)` is a context.

    Raises:
        StorageError: a file is not served, keeps breaking off or changing, or cannot be written.
    """
    remotes = [open_remote(base_url, name) for name in files]
    versions = [stat(remote, log) for remote in remotes]
    sizes = [storage.file_size(storage.join(out, name)) for name in files]
    pairs = zip(versions, sizes, strict=True)
    partial.prepare_folder(out, sum(one.size for one, size in pairs if one.size != size))
    for name, remote, version, size in zip(files, remotes, versions, sizes, strict=True):
        uri = storage.join(out, name)
        if size == version.size:
            partial.discard(uri)
            log(f"{name} is there")
            yield FetchResult(name, uri, size, skipped=True, resumed_bytes=0)
        else:
            yield _fetch(name, remote, version, uri, progress, log)


def _fetch(
    name: str, remote: RemoteFile, version: RemoteVersion, uri: str, progress: Progress, log: Log
) -> FetchResult:
    """One file; from its first byte again where it changes meanwhile."""
    for _ in range(MAX_VERSIONS):
        try:
            resumed = _download(name, remote, version, uri, progress, log)
        except ChangedError as error:
            log(f"{remote.uri}: {error}; beginning again")
            version = stat(remote, log)
            continue
        size = storage.file_size(uri)
        if size != version.size:
            raise StorageError(
                f"{uri}: expected {version.size} bytes, found {size}; give the same command again"
            )
        return FetchResult(name, uri, size, skipped=False, resumed_bytes=resumed)
    raise StorageError(
        f"{remote.uri}: begun {MAX_VERSIONS} times and always changed; try again later"
    )


def _download(
    name: str, remote: RemoteFile, version: RemoteVersion, uri: str, progress: Progress, log: Log
) -> int:
    with (
        partial.resumable_writer(uri, version.tag) as (start, write),
        progress(name, version.size, start) as advance,
    ):
        for chunk in iter_bytes(remote, version, start, log):
            write(chunk)
            advance(len(chunk))
    return start
