"""One door to storage: local folders and `s3://` buckets by the same calls.

Credentials, region and endpoint come from the environment alone (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, ...), so no key is ever an argument, a field or part
of something pickled: objects carry URIs, and each process opens them for itself.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from pyarrow import fs

from segan.errors import NotFoundError, StorageError, UsageError
from segan.storage import s3

_LOCAL_FS = fs.LocalFileSystem()
_retry_checks = False
_ERRNO_ADVICE = dict.fromkeys(
    (errno.ENOSPC, errno.EDQUOT), "; make room and give the command again"
)


@dataclass(frozen=True)
class FileInfo:
    """A file below a URI: its name relative to it, with `/` between folders, and its size.

    Two are equal by name and size alone, whenever they were written.
    """

    name: str
    size: int
    last_modified: datetime | None = field(default=None, compare=False)


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def normalise(uri: str) -> str:
    """`uri` without a trailing slash; a local path becomes absolute.

    Raises:
        UsageError: a scheme that is neither a path nor `s3://`, no bucket in it, or keys.
    """
    if is_s3(uri):
        bucket = urlsplit(uri).netloc
        if "@" in bucket:  # not repeated: what stands before it may be a key
            raise UsageError(
                "s3://...@...: keys belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "never into a URI"
            )
        if not bucket:
            raise UsageError(f"{uri}: no bucket in it; expected s3://bucket/prefix")
        return uri.rstrip("/")
    if ("://" in uri and not uri.startswith("file://")) or uri.startswith("s3:"):
        raise UsageError(f"{uri}: expected a local path or s3://bucket/prefix")
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


def join(uri: str, *names: str) -> str:
    """`uri` with names appended; a name that would leave its folder is refused with UsageError."""
    for name in names:
        parts = name.split("/")
        if name.startswith(("/", "~")) or "\\" in name or any(p in ("", ".", "..") for p in parts):
            raise UsageError(f"{name!r}: not a name inside {uri}")
    return "/".join([uri.rstrip("/"), *names])


def basename(uri: str) -> str:
    """What stands after the last slash."""
    return uri.rpartition("/")[2]


def read_bytes(uri: str) -> bytes:
    if is_s3(uri):
        return b"".join(s3.stream_object(uri))
    with _storage_errors(uri):
        return Path(normalise(uri)).read_bytes()


class RandomAccessFile:
    """A file read in pieces, each of them one ranged request in S3; a context manager.

    Threads may share it.

    Attributes:
        size: in bytes.
        version: another one when the file is another one.

    Raises:
        StorageError: it cannot be opened; NotFoundError where it is not there.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._file: BinaryIO | None = None
        if is_s3(uri):
            info = s3.stat_object(uri)
            if info is None:
                raise NotFoundError(f"{uri}: not found")
            self.size, self.etag = info.size, info.etag
            return
        with _storage_errors(uri):
            path = normalise(uri)
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
                raise StorageError(f"{uri}: expected a file, found another kind of thing")
            self.size, self.etag = status.st_size, f"{status.st_ino} {status.st_mtime_ns}"
            self._file = open(path, "rb")  # noqa: SIM115  (closed by `__exit__`)

    def read_at(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer where the file ends before."""
        if not 0 <= start < self.size:
            return b""
        length = min(length, self.size - start)
        if self._file is None:
            return b"".join(s3.stream_object(self.uri, start, length, self.etag))
        with _storage_errors(self.uri):
            return os.pread(self._file.fileno(), length, start)

    def __enter__(self) -> RandomAccessFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()


def read_chunks(uri: str) -> Iterator[bytes]:
    """A file's content in pieces, so that it need not fit in memory."""
    if is_s3(uri):
        yield from s3.stream_object(uri)
        return
    with _storage_errors(uri), open(normalise(uri), "rb") as file:
        while chunk := file.read(s3.CHUNK_BYTES):
            yield chunk


def file_sha256(uri: str, on_progress: Callable[[int], object] = lambda number: None) -> str:
    """`tell` is called with the number of bytes read."""
    digest = hashlib.sha256()
    for chunk in read_chunks(uri):
        digest.update(chunk)
        on_progress(len(chunk))
    return digest.hexdigest()


def download(
    uri: str,
    target: str,
    expected_sha256: str,
    on_progress: Callable[[int], object] = lambda number: None,
) -> None:
    """Copies a file to a local path, where it appears whole and only with the right checksum.

    `tell` is called with the number of bytes read.

    Raises:
        StorageError: its sha256 is not `expected`; what was at `target` is still there.
    """
    digest, size = hashlib.sha256(), 0
    with _storage_errors(target), _atomic_write(Path(target)) as partial:
        with partial.open("wb") as sink:
            for chunk in read_chunks(uri):
                digest.update(chunk)
                size += sink.write(chunk)
                on_progress(len(chunk))
        if digest.hexdigest() != expected_sha256:
            raise StorageError(
                f"{uri}: expected sha256 {expected_sha256}, found {digest.hexdigest()} "
                f"({size} bytes); "
                "not taken, use another copy"
            )


def write_bytes(uri: str, content: bytes) -> None:
    """Writes whole or not at all: S3 puts are atomic, a local file is renamed into place."""
    if is_s3(uri):
        s3.put_object(uri, content)
        return
    with _storage_errors(uri), _atomic_write(Path(normalise(uri))) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def _atomic_write(target: Path) -> Iterator[Path]:
    """A path to write to, which is renamed to `target` if nothing fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read_json(uri: str) -> Any:
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{uri}: expected JSON ({error})") from None


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def is_partial(name: str) -> bool:
    """Whether a file is what a killed `write_bytes` leaves in a local folder."""
    return name.startswith(".") and name.endswith(".partial")


def exists(uri: str) -> bool:
    """Whether there is a file of this very name."""
    return file_size(uri) is not None


def file_size(uri: str) -> int | None:
    """Bytes in the file of this very name; None where there is none."""
    if is_s3(uri):
        found = s3.stat_object(uri)
        return found.size if found else None
    with _storage_errors(uri):
        info = _LOCAL_FS.get_file_info(normalise(uri))
    return int(info.size) if info.type == fs.FileType.File else None


def list_files(uri: str) -> list[FileInfo]:
    """Every file below `uri`, sorted by name; none when the folder or prefix is not there."""
    if is_s3(uri):
        _, key = s3.bucket_and_key(uri)
        start = len(f"{key}/") if key else 0
        files = [
            FileInfo(one.key[start:], one.size, one.last_modified)
            for one in s3.list_objects(uri)
            if not one.key.endswith("/")
        ]
    else:
        path = normalise(uri)
        with _storage_errors(uri):
            infos = _LOCAL_FS.get_file_info(
                fs.FileSelector(path, recursive=True, allow_not_found=True)
            )
        start = len(path.rstrip("/")) + 1
        files = [
            FileInfo(one.path[start:], one.size, one.mtime)
            for one in infos
            if one.type == fs.FileType.File
        ]
    return sorted(files, key=lambda file: file.name)


def delete_file(uri: str) -> None:
    """Removes one file; raises NotFoundError where it is not there."""
    if not is_s3(uri):
        with _storage_errors(uri):
            Path(normalise(uri)).unlink()
        return
    if s3.stat_object(uri) is None:
        raise NotFoundError(f"{uri}: not found")
    s3.delete_object(uri)


def delete_folder(uri: str) -> None:
    """Removes the folder or prefix with all below it; nothing happens when it is not there."""
    if is_s3(uri):
        s3.delete_prefix(uri)
        return
    path = normalise(uri)
    with _storage_errors(uri):
        if os.path.lexists(path):
            _LOCAL_FS.delete_dir(path)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_access(uri: str) -> None:
    """Fails within seconds, and with the reason, where a bucket cannot be used at all.

    Local URIs pass: what is missing there says so by itself.

    Raises:
        StorageError: no credentials, a wrong key, no such bucket, or no answer at the endpoint.
    """
    if is_s3(uri):
        s3.check_bucket(normalise(uri), _retry_checks)


def retry_access_checks() -> None:
    """From here on `check_access` waits as any other call does.

    For a process that a command has started after its own check passed, such as a worker: storage
    that has a bad minute when the worker starts is no reason to fail.
    """
    global _retry_checks
    _retry_checks = True


class _storage_errors:  # noqa: N801  (reads as a statement: `with _named(uri):`)
    """Turns what a file system raises into a StorageError that names the URI."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        if isinstance(error, FileNotFoundError):
            raise NotFoundError(f"{self.uri}: not found") from None
        if isinstance(error, OSError):
            reason = error.strerror or str(error).splitlines()[0]
            advice = _ERRNO_ADVICE.get(error.errno or 0, "")
            raise StorageError(f"{self.uri}: {reason}{advice}") from error


def iter_names(uri: str, suffix: str) -> Iterator[str]:
    """The names below `uri` that end in `suffix`, sorted."""
    return (file.name for file in list_files(uri) if file.name.endswith(suffix))
