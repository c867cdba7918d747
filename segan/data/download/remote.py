"""A file on an HTTP server or in a bucket, read from any byte on, through whatever breaks.

A file has a version, so that bytes of two versions are never taken for one file: its size and what
the server calls it (ETag, or else the time of its last change).
"""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from segan import storage
from segan.errors import StorageError, TransientError, UsageError
from segan.storage import s3

MAX_ATTEMPTS = 6  # in a row without a byte
INITIAL_BACKOFF_S = 1.0  # after the first failure; doubled after each further one
READ_TIMEOUT_S = 60.0
CHUNK_SIZE = 256 * 1024

Log = Callable[[str], None]


class ChangedError(Exception):
    """What is served now cannot be joined to what came before."""


@dataclass(frozen=True)
class RemoteVersion:
    size: int
    validator: str | None

    @property
    def tag(self) -> str:
        """Short, fit for a file's name, and different for every version.

        What has no name might be anything the next time, so it never has the same tag twice.
        """
        return hashlib.sha256(f"{self.validator or uuid.uuid4()} {self.size}".encode()).hexdigest()[
            :16
        ]


class RemoteFile(Protocol):
    """A file elsewhere; both calls raise TransientError where another attempt may help."""

    @property
    def uri(self) -> str: ...

    def stat(self) -> RemoteVersion:
        """What is there now, without reading it."""

    def read(self, version: RemoteVersion, start: int) -> Iterator[bytes]:
        """The bytes of this version from `start` on, or ChangedError; may end too early."""


def check_base(base: str) -> str:
    """`base` without a trailing slash; raises UsageError where no file could be below it."""
    if storage.is_s3(base):
        return storage.normalise(base)
    if "@" in base.partition("://")[2].partition("/")[0]:  # not repeated: it may be a password
        raise UsageError("--mirror has a name or password in it; only open addresses are read")
    expected = "expected https://host/path, http://host/path or s3://bucket/prefix"
    try:
        parts = urlsplit(base)
        usable = bool(parts.hostname and parts.hostname.encode("idna")) and parts.port != 0
    except ValueError:
        usable = False
    else:
        usable &= parts.scheme in ("http", "https") and not parts.query and not parts.fragment
    if not usable or not re.fullmatch(r"[!-~]+", base):
        raise UsageError(f"--mirror {base!r}: {expected}")
    return base.rstrip("/")


def open_remote(base: str, name: str) -> RemoteFile:
    uri = storage.join(base, name)
    return S3File(uri) if storage.is_s3(uri) else HttpFile(uri)


def stat(remote: RemoteFile, log: Log) -> RemoteVersion:
    """The file's version; attempts that fail are repeated for a while."""
    patience = _RetryBackoff(remote.uri, log)
    while True:
        try:
            return remote.stat()
        except TransientError as error:
            patience.backoff(str(error))


def iter_bytes(remote: RemoteFile, version: RemoteVersion, start: int, log: Log) -> Iterator[bytes]:
    """All bytes from `start` on, over as many connections as it takes.

    Raises:
        ChangedError: another version is served now.
        StorageError: the server refuses, or keeps failing without a byte in between.
    """
    position, patience = start, _RetryBackoff(remote.uri, log)
    while position < version.size:
        broken = "the connection was closed"
        try:
            for chunk in remote.read(version, position):
                position += len(chunk)
                if position > version.size:
                    raise ChangedError(f"more than the {version.size} bytes that it had at first")
                patience.failures = 0
                yield chunk
        except TransientError as error:
            broken = str(error)
        if position < version.size:
            patience.backoff(f"{broken} after {position} of {version.size} bytes")


class _RetryBackoff:
    """Waits after each failure, twice as long as after the one before, until it is enough."""

    def __init__(self, uri: str, log: Log) -> None:
        self.uri, self.log, self.failures = uri, log, 0

    def backoff(self, reason: str) -> None:
        self.failures += 1
        if self.failures == MAX_ATTEMPTS:
            raise StorageError(
                f"{self.uri}: {reason}, and so {MAX_ATTEMPTS} times in a row; what has come "
                f"is kept: "
                "give the same command again later, or name a mirror with --mirror"
            )
        wait = INITIAL_BACKOFF_S * 2 ** (self.failures - 1)
        self.log(f"{self.uri}: {reason}; again in {wait:g} s")
        time.sleep(wait)


@dataclass(frozen=True)
class HttpFile:
    uri: str

    def stat(self) -> RemoteVersion:
        with _request(self.uri, method="HEAD") as answer:
            found = _response_version(answer)
            kind = answer.headers.get_content_type()
        if found is None:
            raise StorageError(
                f"{self.uri}: the server does not say its size; name another --mirror"
            )
        if found.size == 0 or kind == "text/html":
            what = "an empty file" if found.size == 0 else "a web page"
            raise StorageError(f"{self.uri}: expected a zip, found {what}; check --mirror")
        return found

    def read(self, version: RemoteVersion, start: int) -> Iterator[bytes]:
        if start and version.validator is None:
            raise ChangedError("cannot be gone on with: the server gives it neither ETag nor date")
        headers = {"Range": f"bytes={start}-", "If-Range": version.validator or ""} if start else {}
        with _request(self.uri, headers=headers) as answer:
            skip = _bytes_to_skip(answer, version, start)
            while chunk := _read_chunk(answer):
                if len(chunk) > skip:
                    yield chunk[skip:]
                skip -= min(skip, len(chunk))


def _bytes_to_skip(response: Any, version: RemoteVersion, start: int) -> int:
    """How many bytes of this answer lie before `start`; ChangedError if it is of another file."""
    if response.status == http.client.PARTIAL_CONTENT:
        span = f"bytes {start}-{version.size - 1}/{version.size}"
        same_name = _response_validator(response) in (None, version.validator)
        if not same_name or response.headers.get("Content-Range") != span:
            raise ChangedError("another version is served now")
        return 0
    # The whole file: the server does not know ranges, or it is not the file that it was.
    now = _response_version(response)
    if _response_validator(response) != version.validator or (now and now != version):
        raise ChangedError("another version is served now")
    return start


def _response_validator(response: Any) -> str | None:
    return response.headers.get("ETag") or response.headers.get("Last-Modified")


def _response_version(response: Any) -> RemoteVersion | None:
    size = response.headers.get("Content-Length", "")
    return RemoteVersion(int(size), _response_validator(response)) if size.isdecimal() else None


def _read_chunk(response: Any) -> bytes:
    """What is there, without waiting for more; nothing at the end."""
    try:
        return bytes(response.read1(CHUNK_SIZE))
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(_cause(error)) from None


def _request(uri: str, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
    """The answer's head, its body still to be read; the environment's proxies are used."""
    request = urllib.request.Request(  # noqa: S310  (`check_base` let only http and https pass)
        uri, method=method, headers={"User-Agent": "segan", **(headers or {})}
    )
    try:
        return urllib.request.build_opener(_RedirectHandler).open(request, timeout=READ_TIMEOUT_S)
    except HTTPError as error:
        error.close()
        raise _status_to_error(uri, error) from None
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise StorageError(f"{uri}: {error.reason}; is it the right server?") from None
        raise TransientError(_cause(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(_cause(error)) from None


def _status_to_error(uri: str, error: HTTPError) -> Exception:
    status = error.code
    if 300 <= status < 400:
        place = error.headers.get("Location")
        return StorageError(f"{uri}: redirected to {place}, which is not followed; check --mirror")
    if status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        return ChangedError("it is shorter now")
    if status >= 500 or status in (408, 429):
        return TransientError(f"the server failed (HTTP {status})")
    reasons = {
        401: "the server asks for a password, and only open addresses are read; check --mirror",
        403: "access refused; check the address, or name a mirror with --mirror",
        404: "not found; check the address, or name a mirror with --mirror",
    }
    reason = reasons.get(status, "refused; check the address, or name a mirror with --mirror")
    return StorageError(f"{uri}: {reason} (HTTP {status})")


def _cause(error: Any) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came for {READ_TIMEOUT_S:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    """Follows to http and https alone, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if urlsplit(newurl).scheme not in allowed:
            return None
        again = super().redirect_request(req, fp, code, msg, headers, newurl)
        if again:
            again.method = req.get_method()  # or else HEAD becomes GET before Python 3.13
        return again


@dataclass(frozen=True)
class S3File:
    uri: str

    def stat(self) -> RemoteVersion:
        found = s3.stat_object(self.uri)
        if found is None or found.size == 0:
            what = "expected a zip, found an empty file" if found else "not found"
            raise StorageError(f"{self.uri}: {what}; check --mirror")
        return RemoteVersion(found.size, found.etag)

    def read(self, version: RemoteVersion, start: int) -> Iterator[bytes]:
        from botocore.exceptions import ClientError

        bucket, key = s3.bucket_and_key(self.uri)
        with s3.storage_errors(self.uri):
            try:
                found = s3.shared_client().get_object(
                    Bucket=bucket, Key=key, Range=f"bytes={start}-", IfMatch=version.validator
                )
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 412, 416):
                    raise ChangedError("another version is there now, or none") from None
                raise
            s3.require_fields(self.uri, found, "ETag", "ContentLength")
            if found["ETag"] != version.validator:
                raise ChangedError("another version is there now")
            with found["Body"] as body:
                while chunk := body.read(CHUNK_SIZE):
                    yield chunk
