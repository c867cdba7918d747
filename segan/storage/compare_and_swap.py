"""A small file that is changed only by who has seen what is in it, here or in S3.

That is what keeps two processes that want the same thing apart: of any number that write after
having read the same, exactly one succeeds.
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

LOCK_TIMEOUT_S = 5.0
LOCK_POLL_INTERVAL_S = 0.02
QUICK_TIMEOUT_S = 5.0
# File systems that know no locks, some of those in networks: there, two that write within the
# same millisecond can both believe that they were alone, until they next read.
NO_LOCK_ERRNOS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@dataclass(frozen=True)
class FileVersion:
    """A file's content, and the mark by which the store knows it from every other."""

    content: bytes
    etag: str


class ConditionalFile(Protocol):
    """Each method raises StorageError where the store does not answer or refuses."""

    def read(self) -> FileVersion | None:
        """What is there now; None where there is no file."""

    def compare_and_swap(self, expected: FileVersion | None, new: bytes) -> bool:
        """Writes if what is there is still what was `seen`, None for no file; says if it did."""

    def compare_and_delete(self, expected: FileVersion) -> bool:
        """Deletes the file if it is still the one that was `seen`; says if it did."""

    def supports_atomic_cas(self) -> bool:
        """Tries whether this store keeps apart two at the same moment; the file must be there."""


def conditional_file(uri: str, quick: bool = False) -> ConditionalFile:
    """The file at a URI.

    Args:
        quick: one attempt of a few seconds, for who will come again; else with S3's retries.
    """
    return _S3ConditionalFile(uri, quick) if storage.is_s3(uri) else _LocalConditionalFile(uri)


class _S3ConditionalFile:
    """By S3's conditional requests: If-None-Match and If-Match, which AWS and SeaweedFS enforce.

    A store that refuses such requests (501) is asked without, right after a look at what is
    there; one that ignores the conditions does the same without the look. Both are less strict:
    of two that write at the same moment the later one stays, and the other learns of it when it
    reads next.
    """

    def __init__(self, uri: str, quick: bool):
        self.uri, (self.bucket, self.key) = uri, s3.bucket_and_key(uri)
        self.client = (
            s3.create_client(QUICK_TIMEOUT_S, max_attempts=1) if quick else s3.create_client()
        )

    def read(self) -> FileVersion | None:
        with s3.storage_errors(self.uri):
            try:
                found = self.client.get_object(Bucket=self.bucket, Key=self.key)
                return FileVersion(found["Body"].read(), found["ETag"])
            except self.client.exceptions.NoSuchKey:
                return None

    def compare_and_swap(self, expected: FileVersion | None, new: bytes) -> bool:
        condition = {"IfMatch": expected.etag} if expected else {"IfNoneMatch": "*"}
        return self._conditional_request(self.client.put_object, expected, condition, Body=new)

    def compare_and_delete(self, expected: FileVersion) -> bool:
        return self._conditional_request(
            self.client.delete_object, expected, {"IfMatch": expected.etag}
        )

    def supports_atomic_cas(self) -> bool:
        version = self.read()
        content = version.content if version else b""
        false_conditions = ({"IfNoneMatch": "*"}, {"IfMatch": '"0"'})
        outcomes = [
            self._request(self.client.put_object, one, Body=content) for one in false_conditions
        ]
        return outcomes == [False, False]

    def _conditional_request(
        self,
        call: Callable[..., Any],
        expected: FileVersion | None,
        condition: dict[str, str],
        **options: Any,
    ) -> bool:
        done = self._request(call, condition, **options)
        if done is None:
            done = self.read() == expected and self._request(call, {}, **options)
        return bool(done)

    def _request(
        self, call: Callable[..., Any], condition: dict[str, str], **options: Any
    ) -> bool | None:
        """Whether it was done: not where the condition is untrue; None where it is not known."""
        from botocore.exceptions import ClientError

        with s3.storage_errors(self.uri):
            try:
                call(Bucket=self.bucket, Key=self.key, **options, **condition)
            except ClientError as error:
                code = error.response["ResponseMetadata"]["HTTPStatusCode"]
                gone = code == 404 and error.response["Error"]["Code"] == "NoSuchKey"
                if gone or code in (409, 412):
                    return False
                if code == 501 and condition:
                    return None
                raise
        return True


class _LocalConditionalFile:
    """By a lock on the file itself, held for as long as a few hundred bytes take."""

    def __init__(self, uri: str):
        self.uri, self.path = uri, Path(storage.normalise(uri))

    def read(self) -> FileVersion | None:
        with (
            self._storage_errors(),
            contextlib.suppress(FileNotFoundError),
            self.path.open("rb") as stream,
            self._flock(stream, fcntl.LOCK_SH),
        ):
            return _to_version(stream.read())
        return None

    def compare_and_swap(self, expected: FileVersion | None, new: bytes) -> bool:
        with self._storage_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open_locked(os.O_CREAT) as stream:
                if _to_version(stream.read()) != expected:
                    return False
                stream.seek(0)
                stream.write(new)
                stream.truncate()
        return True

    def compare_and_delete(self, expected: FileVersion) -> bool:
        with self._storage_errors(), contextlib.suppress(FileNotFoundError):
            with self._open_locked() as stream:
                if _to_version(stream.read()) != expected:
                    return False
                self.path.unlink()
            return True
        return False

    def supports_atomic_cas(self) -> bool:
        with self._storage_errors(), self.path.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno not in NO_LOCK_ERRNOS:
                    raise
                return False
        return True

    @contextlib.contextmanager
    def _open_locked(self, flags: int = 0) -> Iterator[BinaryIO]:
        """The file, open and locked, and still the one of this name."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | flags, 0o644)
            with os.fdopen(descriptor, "r+b") as stream, self._flock(stream, fcntl.LOCK_EX):
                if self._is_current_file(stream):  # or else it was deleted while we waited
                    yield stream
                    return

    def _is_current_file(self, stream: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(stream.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def _flock(self, stream: BinaryIO, operation: int) -> Iterator[None]:
        # Not waited for without end: who holds the lock may have been stopped.
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(stream, operation | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"{self.uri}: locked for {LOCK_TIMEOUT_S:g} s by another process; is it "
                        "stopped?"
                    ) from None
                time.sleep(LOCK_POLL_INTERVAL_S)
            except OSError as error:
                if error.errno not in NO_LOCK_ERRNOS:
                    raise
                break
        yield
        stream.flush()  # before the lock goes with the closing of the file

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.uri}: {error.strerror or error}") from error


def _to_version(content: bytes) -> FileVersion | None:
    # An empty file is one whose writer was ended before it wrote, and counts as none.
    return FileVersion(content, "") if content else None
