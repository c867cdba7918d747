"""The challenge's official files, by their published names, into a folder or a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from segan import storage
from segan.data import partial
from segan.data.remote import ChangedError, Remote, Say, Version, look, remote_file, stream
from segan.errors import StorageError, UsageError

CHALLENGE = "https://isic-challenge-data.s3.amazonaws.com"
VERSIONS = 3  # of one file in one command, before it is given up

Progress = Callable[[str, int, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class DataSet:
    """Task 1 of a year's challenge: where it is served, and its files."""

    base: str
    files: tuple[str, ...]


DATA_SETS = {
    "isic2016": DataSet(
        f"{CHALLENGE}/2016",
        (
            "ISBI2016_ISIC_Part1_Training_Data.zip",
            "ISBI2016_ISIC_Part1_Training_GroundTruth.zip",
            "ISBI2016_ISIC_Part1_Test_Data.zip",
            "ISBI2016_ISIC_Part1_Test_GroundTruth.zip",
        ),
    ),
    "isic2017": DataSet(
        f"{CHALLENGE}/2017",
        (
            "ISIC-2017_Training_Data.zip",
            "ISIC-2017_Training_Part1_GroundTruth.zip",
            "ISIC-2017_Validation_Data.zip",
            "ISIC-2017_Validation_Part1_GroundTruth.zip",
            "ISIC-2017_Test_v2_Data.zip",
            "ISIC-2017_Test_v2_Part1_GroundTruth.zip",
        ),
    ),
    "isic2018": DataSet(
        f"{CHALLENGE}/2018",
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
class Fetched:
    """A file that is here now; `resumed` are the bytes that an earlier command had left."""

    file: str
    uri: str
    bytes: int
    skipped: bool
    resumed: int


def data_set(name: str) -> DataSet:
    if name not in DATA_SETS:
        raise UsageError(f"no data set {name!r}; expected one of {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


def fetch_files(
    files: Sequence[str], base: str, place: str, progress: Progress, say: Say
) -> Iterator[Fetched]:
    """Brings each file from below `base` to below `place`; one that is there whole is left alone.

    All are looked at before the first is read, so that what is missing is said at once. Stopped at
    any moment, a second call goes on from there. `progress(what, total, done)` is a context.

    Raises:
        StorageError: a file is not served, keeps breaking off or changing, or cannot be written.
    """
    remotes = [remote_file(base, name) for name in files]
    versions = [look(remote, say) for remote in remotes]
    sizes = [storage.size(storage.join(place, name)) for name in files]
    pairs = zip(versions, sizes, strict=True)
    partial.prepare(place, sum(one.size for one, size in pairs if one.size != size))
    for name, remote, version, size in zip(files, remotes, versions, sizes, strict=True):
        uri = storage.join(place, name)
        if size == version.size:
            partial.forget(uri)
            say(f"{name} is there")
            yield Fetched(name, uri, size, skipped=True, resumed=0)
        else:
            yield _fetch(name, remote, version, uri, progress, say)


def _fetch(
    name: str, remote: Remote, version: Version, uri: str, progress: Progress, say: Say
) -> Fetched:
    """One file; from its first byte again where it changes meanwhile."""
    for _ in range(VERSIONS):
        try:
            resumed = _receive(name, remote, version, uri, progress, say)
        except ChangedError as error:
            say(f"{remote.uri}: {error}; beginning again")
            version = look(remote, say)
            continue
        size = storage.size(uri)
        if size != version.size:
            raise StorageError(
                f"{uri}: expected {version.size} bytes, found {size}; give the same command again"
            )
        return Fetched(name, uri, size, skipped=False, resumed=resumed)
    raise StorageError(f"{remote.uri}: begun {VERSIONS} times and always changed; try again later")


def _receive(
    name: str, remote: Remote, version: Version, uri: str, progress: Progress, say: Say
) -> int:
    with (
        partial.receiving(uri, version.tag) as (start, write),
        progress(name, version.size, start) as advance,
    ):
        for chunk in stream(remote, version, start, say):
            write(chunk)
            advance(len(chunk))
    return start
