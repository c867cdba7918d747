"""Compare-and-swap on a small file, local or in S3.

Of any number of processes that write after having read the same version, exactly one succeeds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from segan import storage
from segan.errors import StorageError
from segan.storage import s3
from segan.storage.files import os_errors
from segan.storage.local import make_folder

LOCK_TIMEOUT_S = 5.0
LOCK_POLL_INTERVAL_S = 0.02
QUICK_TIMEOUT_S = 5.0
# Some network file systems have no locks: there, two processes that write within the same
# millisecond can both succeed, and one of them finds out at its next read.
NO_LOCK_ERRNOS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@dataclass(frozen=True)
class FileVersion:
    """A file's content and, in S3, its ETag."""

    content: bytes
    etag: str


class ConditionalFile(Protocol):
    """Every method raises StorageError if the store does not respond or denies access."""

    def read(self) -> FileVersion | None:
        """Returns the current version, or None if there is no file."""

    def compare_and_swap(self, expected: FileVersion | None, new: bytes) -> bool:
        """Writes `new` if the file is still `expected` (None: no file); returns whether it did."""

    def compare_and_delete(self, expected: FileVersion) -> bool:
        """Deletes the file if it is still `expected`; returns whether it did."""

    def supports_atomic_cas(self) -> bool:
        """Tests whether the store enforces the conditions; the file must exist."""


def conditional_file(uri: str, quick: bool = False) -> ConditionalFile:
    """Returns the file at a URI.

    Args:
        quick: give up after one attempt of a few seconds, instead of retrying as usual.
    """
    return _S3ConditionalFile(uri, quick) if storage.is_s3(uri) else _LocalConditionalFile(uri)


class _S3ConditionalFile:
    """Uses S3's conditional requests (If-Match, If-None-Match), which AWS and SeaweedFS enforce.

    If a store rejects them (501), the file is read and compared right before an unconditional
    request; a store may also ignore the conditions. Then, of two processes that write at the same
    moment, the later one wins, and the other finds out at its next read.
    """

    def __init__(self, uri: str, quick: bool):
        self.uri, (self.bucket, self.key) = uri, s3.bucket_and_key(uri)
        self.client = s3.create_client(QUICK_TIMEOUT_S) if quick else s3.shared_client()
        self.timeout_s = 0.0 if quick else None

    def read(self) -> FileVersion | None:
        def get() -> FileVersion | None:
            try:
                response = self.client.get_object(Bucket=self.bucket, Key=self.key)
            except self.client.exceptions.NoSuchKey:
                return None
            s3.require_fields(self.uri, response, "ETag", "ContentLength")
            return FileVersion(response["Body"].read(), response["ETag"])

        return s3.call_with_retry(self.uri, get, timeout_s=self.timeout_s)

    def compare_and_swap(self, expected: FileVersion | None, new: bytes) -> bool:
        condition = {"IfMatch": expected.etag} if expected else {"IfNoneMatch": "*"}
        return self._conditional_request(self.client.put_object, expected, condition, Body=new)

    def compare_and_delete(self, expected: FileVersion) -> bool:
        condition = {"IfMatch": expected.etag}
        return self._conditional_request(self.client.delete_object, expected, condition)

    def supports_atomic_cas(self) -> bool:
        version = self.read()
        content = version.content if version else b""
        false_conditions = ({"IfNoneMatch": "*"}, {"IfMatch": '"0"'})
        outcomes = [
            self._request(self.client.put_object, condition, Body=content)
            for condition in false_conditions
        ]
        return outcomes == [False, False]

    def _conditional_request(
        self,
        call: Callable[..., Any],
        expected: FileVersion | None,
        condition: dict[str, str],
        **options: Any,
    ) -> bool:
        succeeded = self._request(call, condition, **options)
        if succeeded is None:
            succeeded = self.read() == expected and self._request(call, {}, **options)
        return bool(succeeded)

    def _request(
        self, call: Callable[..., Any], condition: dict[str, str], **options: Any
    ) -> bool | None:
        """Returns whether the condition held; None if the store does not support conditions."""
        from botocore.exceptions import ClientError

        def attempt() -> bool | None:
            try:
                call(Bucket=self.bucket, Key=self.key, **options, **condition)
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                deleted = status == 404 and error.response["Error"]["Code"] == "NoSuchKey"
                if deleted or status in (409, 412):
                    return False
                if status == 501 and condition:
                    return None
                raise
            return True

        return s3.call_with_retry(self.uri, attempt, timeout_s=self.timeout_s)


class _LocalConditionalFile:
    """Holds a lock on the file itself while it is read, compared and written."""

    def __init__(self, uri: str):
        self.uri, self.path = uri, Path(storage.normalise(uri))

    def read(self) -> FileVersion | None:
        with (
            os_errors(self.uri),
            contextlib.suppress(FileNotFoundError),
            self.path.open("rb") as stream,
        ):
            self._lock(stream, fcntl.LOCK_SH)
            return _to_version(stream.read())
        return None

    def compare_and_swap(self, expected: FileVersion | None, new: bytes) -> bool:
        with os_errors(self.uri):
            make_folder(self.path.parent)
            with self._open_locked(os.O_CREAT) as stream:
                if _to_version(stream.read()) != expected:
                    return False
                stream.seek(0)
                stream.write(new)
                stream.truncate()
        return True

    def compare_and_delete(self, expected: FileVersion) -> bool:
        with os_errors(self.uri), contextlib.suppress(FileNotFoundError):
            with self._open_locked() as stream:
                if _to_version(stream.read()) != expected:
                    return False
                self.path.unlink()
            return True
        return False

    def supports_atomic_cas(self) -> bool:
        with os_errors(self.uri), self.path.open("rb") as stream:
            return self._lock(stream, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def _open_locked(self, flags: int = 0) -> Iterator[BinaryIO]:
        """Opens the file and locks it until it is closed, after its buffer has been flushed."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | flags, 0o644)
            with os.fdopen(descriptor, "r+b") as stream:
                self._lock(stream, fcntl.LOCK_EX)
                if self._is_current_file(stream):  # else it was deleted before we had the lock
                    yield stream
                    return

    def _is_current_file(self, stream: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(stream.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _lock(self, stream: BinaryIO, operation: int) -> bool:
        """Locks an open file; returns False if its file system has no locks."""
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(stream, operation | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:  # the process that holds it may be suspended
                    raise StorageError(
                        f"{self.uri}: locked by another process for {LOCK_TIMEOUT_S:g} s; check "
                        "that it is not suspended"
                    ) from None
                time.sleep(LOCK_POLL_INTERVAL_S)
            except OSError as error:
                if error.errno not in NO_LOCK_ERRNOS:
                    raise
                return False


def _to_version(content: bytes) -> FileVersion | None:
    # An empty file, left by a process that was killed before it wrote, counts as no file, and so
    # does one of zeros, left by a power cut: whoever wrote it has ended.
    return FileVersion(content, "") if content.strip(b"\0") else None
