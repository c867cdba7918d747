"""Local folders and `s3://` buckets by the same functions; re-exported by `segan.storage`."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from segan.errors import NotFoundError, StorageError, UsageError
from segan.storage import multipart, s3
from segan.storage.local import durable_writer, make_folder, sync_folder, walk

logger = logging.getLogger(__name__)
_retry_checks = False
_ERRNO_ADVICE = (
    dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "; free some space and run the command again"
    )
    | dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "; check the permissions")
    | dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "; check the path")
)


@dataclass(frozen=True)
class FileInfo:
    """A file below a URI: its name relative to the URI, with `/` between folders, and its size.

    Equality compares names and sizes only.
    """

    name: str
    size: int
    last_modified: datetime | None = field(default=None, compare=False)


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def normalise(uri: str) -> str:
    """Returns the one spelling of `uri`: without a trailing or double slash, `.` or `..`.

    A local path becomes absolute.

    Raises:
        UsageError: the URI is empty or neither a path nor `s3://`, names no bucket, or contains
            credentials or, in a bucket, `.` or `..`.
    """
    if not uri.strip():
        raise UsageError(f"{uri!r}: expected a path or s3://bucket/prefix, found nothing")
    if "\0" in uri:
        raise UsageError(f"{uri!r}: expected a path without a null character")
    if is_s3(uri):
        bucket = urlsplit(uri).netloc
        if "@" in bucket:  # the message omits the URI, which may contain a secret
            raise UsageError(
                "s3://...@...: expected no credentials in the URI; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            )
        if not bucket:
            raise UsageError(f"{uri}: bucket name missing; expected s3://bucket/prefix")
        parts = [part for part in uri.removeprefix("s3://").split("/") if part]
        if {".", ".."} & {*parts}:  # stores differ in what they make of these
            raise UsageError(f"{uri}: expected a prefix without . and ..")
        return f"s3://{'/'.join(parts)}"
    if ("://" in uri and not uri.startswith("file://")) or uri.startswith("s3:"):
        raise UsageError(f"{uri}: expected a local path or s3://bucket/prefix")
    try:
        with os_errors(uri):
            return str(_resolve_dots(Path(uri.removeprefix("file://")).expanduser().absolute()))
    except RuntimeError:
        raise UsageError(f"{uri}: expected an existing user after ~") from None


def _resolve_dots(path: Path) -> Path:
    """An absolute path without `..`; of a link, `..` is the folder of its target."""
    if ".." not in path.parts:
        return path
    resolved = Path(path.anchor)
    for part in path.parts[1:]:
        if part != "..":
            resolved = resolved / part
        else:
            resolved = (resolved.resolve() if resolved.is_symlink() else resolved).parent
    return resolved


def join(uri: str, *names: str) -> str:
    """Appends names to `uri`; raises UsageError for a name that would leave the folder."""
    for name in names:
        parts = name.split("/")
        if name.startswith(("/", "~")) or "\\" in name or any(p in ("", ".", "..") for p in parts):
            raise UsageError(f"{name!r}: expected a name inside {uri}")
    return "/".join([uri.rstrip("/"), *names])


def basename(uri: str) -> str:
    """Returns the part after the last slash."""
    return uri.rpartition("/")[2]


def read_bytes(uri: str) -> bytes:
    if is_s3(uri):
        return b"".join(s3.stream_object(uri))
    with os_errors(uri):
        return Path(normalise(uri)).read_bytes()


class RandomAccessFile:
    """A file read at arbitrary offsets, in S3 by ranged requests; a context manager, thread-safe.

    Attributes:
        size: in bytes.
        etag: identifies the content; differs once the file is replaced.

    Raises:
        NotFoundError: the file does not exist.
        StorageError: the file cannot be opened.
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
        with os_errors(uri):
            path = normalise(uri)
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
                raise StorageError(f"{uri}: expected a regular file")
            self.size, self.etag = status.st_size, f"{status.st_ino} {status.st_mtime_ns}"
            self._file = open(path, "rb")  # noqa: SIM115  (closed by `__exit__`)

    def read_at(self, start: int, length: int) -> bytes:
        """Returns `length` bytes from `start`, or fewer at the end of the file."""
        if not 0 <= start < self.size:
            return b""
        length = min(length, self.size - start)
        if self._file is None:
            return b"".join(s3.stream_object(self.uri, start, length, self.etag))
        with os_errors(self.uri):
            return os.pread(self._file.fileno(), length, start)

    def __enter__(self) -> RandomAccessFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()


def read_chunks(uri: str) -> Iterator[bytes]:
    """Yields a file's content in chunks, so that it need not fit in memory."""
    if is_s3(uri):
        yield from s3.stream_object(uri)
        return
    with os_errors(uri), open(normalise(uri), "rb") as file:
        while chunk := file.read(s3.CHUNK_BYTES):
            yield chunk


def file_sha256(uri: str, on_progress: Callable[[int], object] = lambda number: None) -> str:
    """Returns the hex digest of a file; `on_progress` gets the size of each chunk read."""
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
    """Copies a file to a local path atomically, after its checksum has been verified.

    `on_progress` gets the size of each chunk read.

    Raises:
        StorageError: the sha256 is not `expected_sha256`; `target` is left unchanged.
    """
    digest, size = hashlib.sha256(), 0
    with os_errors(target), durable_writer(Path(target)) as sink:
        for chunk in read_chunks(uri):
            digest.update(chunk)
            size += sink.write(chunk)
            on_progress(len(chunk))
        if digest.hexdigest() != expected_sha256:
            raise StorageError(
                f"{uri}: expected sha256 {expected_sha256}, found {digest.hexdigest()} "
                f"({size} bytes); nothing was written, use another copy"
            )


def write_bytes(uri: str, content: bytes) -> None:
    """Writes a file atomically and durably.

    When it returns, the file survives a power cut. Before, a cut leaves the old file or none. S3
    promises both for a PUT; a local file is synced, renamed into place, and its folder is synced.
    """
    if is_s3(uri):
        s3.put_object(uri, content)
        return
    with os_errors(uri), durable_writer(Path(normalise(uri))) as sink:
        sink.write(content)


def write_buffers(uri: str, buffers: Sequence[bytes | memoryview]) -> tuple[str, int]:
    """Writes the concatenation of buffers as `write_bytes` does, without joining them.

    In S3 a large file is uploaded in parts, several at once.

    Returns:
        The file's SHA-256 as hex, and its size in bytes.
    """
    size = sum(len(buffer) for buffer in buffers)
    if is_s3(uri):
        return multipart.upload(uri, buffers), size
    digest = hashlib.sha256()
    with os_errors(uri), durable_writer(Path(normalise(uri))) as sink:
        for chunk in multipart.split(buffers, s3.CHUNK_BYTES):
            digest.update(chunk)
            sink.write(chunk)
    return digest.hexdigest(), size


def append_bytes(uri: str, content: bytes, durable: bool) -> None:
    """Appends to a local file, which need not exist; a kill or a power cut may leave a part.

    Args:
        durable: whether all that was appended so far survives a power cut when this returns.
    """
    path = Path(normalise(uri))
    with os_errors(uri):
        is_new = not path.exists()
        make_folder(path.parent)
        with path.open("ab") as sink:
            sink.write(content)
            if durable:
                sink.flush()
                os.fsync(sink.fileno())
        if is_new:
            sync_folder(path.parent)


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def is_partial(name: str) -> bool:
    """Whether a killed `write_bytes` left this file in a local folder."""
    return name.startswith(".") and name.endswith(".partial")


def exists(uri: str) -> bool:
    """Whether a file (not a folder or prefix) exists at `uri`."""
    return file_size(uri) is not None


def file_size(uri: str) -> int | None:
    """Returns a file's size in bytes, or None if no file exists at `uri`."""
    if is_s3(uri):
        stored = s3.stat_object(uri)
        return stored.size if stored else None
    with os_errors(uri):
        try:
            status = os.stat(normalise(uri))
        except (FileNotFoundError, NotADirectoryError):
            return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def list_files(uri: str, in_parallel: bool = False) -> list[FileInfo]:
    """Lists all files below `uri`, sorted by name; empty if the folder does not exist.

    In a local folder, links that lead in circles are not followed, and a folder that cannot be read
    or a name that is not UTF-8 is skipped with a warning.

    Args:
        in_parallel: the folders of a bucket side by side, with a request more for each.
    """
    if is_s3(uri):
        _, key = s3.bucket_and_key(uri)
        start = len(f"{key}/") if key else 0
        files = [
            FileInfo(stored.key[start:], stored.size, stored.last_modified)
            for stored in (s3.list_objects_in_parallel if in_parallel else s3.list_objects)(uri)
            if not stored.key.endswith("/")
        ]
    else:
        with os_errors(uri):
            files = [
                FileInfo(name, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
                for name, status in walk(normalise(uri), _warn_skipped)
            ]
    return sorted(files, key=lambda file: file.name)


def _warn_skipped(path: str, reason: str) -> None:
    logger.warning("%s: skipped, %s", path, reason)


def delete_file(uri: str) -> None:
    """Deletes one file durably; raises NotFoundError if it does not exist."""
    if not is_s3(uri):
        path = Path(normalise(uri))
        with os_errors(uri):
            path.unlink()
            sync_folder(path.parent)
        return
    if s3.stat_object(uri) is None:
        raise NotFoundError(f"{uri}: not found")
    s3.delete_object(uri)


def delete_folder(uri: str) -> None:
    """Deletes a folder or prefix with all files below it, if it exists."""
    if is_s3(uri):
        s3.delete_prefix(uri)
        return
    path = normalise(uri)
    with os_errors(uri):
        if os.path.lexists(path):
            shutil.rmtree(path)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_access(uri: str) -> None:
    """Checks within seconds that a bucket can be reached and listed; local URIs always pass.

    Raises:
        StorageError: credentials are missing or wrong, the bucket does not exist, or the endpoint
            does not respond.
    """
    if is_s3(uri):
        s3.check_bucket(normalise(uri), _retry_checks)


def retry_access_checks() -> None:
    """Makes `check_access` retry like every other call from now on, in this process.

    For workers, which start after the command itself has checked access: a short outage at that
    moment is no reason to fail.
    """
    global _retry_checks
    _retry_checks = True


@contextlib.contextmanager
def os_errors(uri: str) -> Iterator[None]:
    """Converts an OSError of the block into a StorageError that names the URI."""
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"{uri}: not found") from None
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        advice = _ERRNO_ADVICE.get(error.errno or 0, "")
        raise StorageError(f"{uri}: {reason}{advice}") from error


def iter_names(uri: str, suffix: str) -> Iterator[str]:
    """Yields the names of the files below `uri` that end in `suffix`, sorted."""
    return (file.name for file in list_files(uri) if file.name.endswith(suffix))
