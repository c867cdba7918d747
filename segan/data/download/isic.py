"""Downloads the official files of the ISIC challenges into a folder or a bucket."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from segan import storage
from segan.data.download import partial
from segan.data.download.remote import (
    ChangedError,
    RemoteFile,
    RemoteVersion,
    iter_bytes,
    open_remote,
    stat,
)
from segan.errors import StorageError, UsageError

ISIC_BASE_URL = "https://isic-challenge-data.s3.amazonaws.com"
MAX_VERSIONS = 3  # versions of one file to start on in one command

Progress = Callable[[str, int, int], AbstractContextManager[Callable[[int], None]]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChallengeDataset:
    """The data of task 1 (lesion segmentation) of one year's challenge."""

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
class DownloadResult:
    """A downloaded file; `resumed_bytes` were kept from an earlier, interrupted command."""

    file: str
    uri: str
    bytes: int
    skipped: bool
    resumed_bytes: int


def get_dataset(name: str) -> ChallengeDataset:
    if name not in DATASETS:
        raise UsageError(f"{name}: unknown dataset; expected one of {', '.join(DATASETS)}")
    return DATASETS[name]


def download_files(
    files: Sequence[str], base_url: str, out: str, progress: Progress
) -> Iterator[DownloadResult]:
    """Downloads each file from `base_url` to `out`, and skips those that are complete.

    Looks up all files before the first download, so that a missing file is reported at once. After
    an interruption, the same call resumes.

    Args:
        progress: called with a file's name, its size and the bytes that are there already; returns
            a context whose value is called with the size of each further chunk.

    Raises:
        StorageError: a file is missing, keeps failing or changing, or cannot be written.
    """
    remotes = [open_remote(base_url, name) for name in files]
    versions = [stat(remote) for remote in remotes]
    sizes = [storage.file_size(storage.join(out, name)) for name in files]
    pairs = zip(versions, sizes, strict=True)
    partial.prepare_folder(
        out, sum(version.size for version, size in pairs if version.size != size)
    )
    for name, remote, version, size in zip(files, remotes, versions, sizes, strict=True):
        uri = storage.join(out, name)
        if size == version.size:
            partial.discard(uri)
            logger.info("%s is complete", name)
            yield DownloadResult(name, uri, size, skipped=True, resumed_bytes=0)
        else:
            yield _download(name, remote, version, uri, progress)


def _download(
    name: str, remote: RemoteFile, version: RemoteVersion, uri: str, progress: Progress
) -> DownloadResult:
    """Downloads one file, from its first byte again if it changes meanwhile."""
    for _ in range(MAX_VERSIONS):
        try:
            with (
                partial.resumable_writer(uri, version.tag) as (start, write),
                progress(name, version.size, start) as advance,
            ):
                for chunk in iter_bytes(remote, version, start):
                    write(chunk)
                    advance(len(chunk))
        except ChangedError as error:
            logger.warning("%s: %s; downloading it from the start", remote.uri, error)
            version = stat(remote)
            continue
        size = storage.file_size(uri)
        if size != version.size:
            raise StorageError(
                f"{uri}: expected {version.size} bytes, found {size}; run the same command again"
            )
        return DownloadResult(name, uri, size, skipped=False, resumed_bytes=start)
    raise StorageError(
        f"{remote.uri}: changed during each of {MAX_VERSIONS} downloads; try again later"
    )
