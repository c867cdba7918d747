"""Reads a file on an HTTP server or in a bucket from any offset, and resumes broken connections.

A file's version (its size, and its ETag or modification time) is checked on every request, so that
bytes of two versions are never joined.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import ssl
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from segan import storage
from segan.errors import StorageError, TransientError, UsageError
from segan.storage import s3
from segan.storage.retry import Backoff, retry

STAT_TIMEOUT_S = 30.0  # a wrong address fails within this time
READ_TIMEOUT_S = 60.0
CHUNK_SIZE = 256 * 1024
RESUME_ADVICE = "run the same command again to resume, or choose another --mirror"


class ChangedError(Exception):
    """The bytes served now belong to another version than those received before."""


@dataclass(frozen=True)
class RemoteVersion:
    """A file's size in bytes, and its ETag or else its Last-Modified header."""

    size: int
    validator: str | None

    @property
    def tag(self) -> str:
        """A short id for file names, unique to the version; random if there is no validator."""
        identity = f"{self.validator or uuid.uuid4()} {self.size}"
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


class RemoteFile(Protocol):
    """A remote file; both methods raise TransientError if retrying may help."""

    @property
    def uri(self) -> str: ...

    def stat(self) -> RemoteVersion:
        """Returns the current version."""

    def read(self, version: RemoteVersion, start: int) -> Iterator[bytes]:
        """Yields bytes of `version` from `start` on, perhaps not to the end.

        Raises:
            ChangedError: another version is served now.
        """


def check_base(base_url: str) -> str:
    """Returns `base_url` without a trailing slash; raises UsageError if it is not a valid URL."""
    if storage.is_s3(base_url):
        return storage.normalise(base_url)
    if "@" in base_url.partition("://")[2].partition("/")[0]:  # the message omits the password
        raise UsageError("--mirror: expected a URL without user name and password")
    expected = "expected https://host/path, http://host/path or s3://bucket/prefix"
    try:
        parts = urlsplit(base_url)
        valid = bool(parts.hostname and parts.hostname.encode("idna")) and parts.port != 0
    except ValueError:
        valid = False
    else:
        valid &= parts.scheme in ("http", "https") and not parts.query and not parts.fragment
    if not valid or not re.fullmatch(r"[!-~]+", base_url):
        raise UsageError(f"--mirror {base_url!r}: {expected}")
    return base_url.rstrip("/")


def open_remote(base_url: str, name: str) -> RemoteFile:
    uri = storage.join(base_url, name)
    return S3File(uri) if storage.is_s3(uri) else HttpFile(uri)


def stat(remote: RemoteFile) -> RemoteVersion:
    """Returns a file's version, with retries."""
    return retry(remote.stat, STAT_TIMEOUT_S, RESUME_ADVICE)


def iter_bytes(remote: RemoteFile, version: RemoteVersion, start: int) -> Iterator[bytes]:
    """Yields all bytes from `start` on, over as many connections as necessary.

    Raises:
        ChangedError: another version is served now.
        StorageError: the server denies access, or sends nothing until the retry timeout.
    """
    position, backoff = start, Backoff(advice=RESUME_ADVICE)
    while position < version.size:
        reason = f"{remote.uri}: the connection was closed"
        try:
            for chunk in remote.read(version, position):
                position += len(chunk)
                if position > version.size:
                    raise ChangedError(f"longer than the {version.size} bytes announced")
                backoff.reset()
                yield chunk
        except TransientError as error:
            reason = str(error)
        if position < version.size:
            backoff.wait(TransientError(f"{reason} after {position} of {version.size} bytes"))


@dataclass(frozen=True)
class HttpFile:
    uri: str

    def stat(self) -> RemoteVersion:
        with _http_errors(self.uri), _request(self.uri, method="HEAD") as response:
            version = _response_version(response)
            content_type = response.headers.get_content_type()
        if version is None:
            raise StorageError(
                f"{self.uri}: the server does not send the file's size; choose another --mirror"
            )
        if version.size == 0 or content_type == "text/html":
            kind = "an empty file" if version.size == 0 else "a web page"
            raise StorageError(f"{self.uri}: expected a zip, found {kind}; check --mirror")
        return version

    def read(self, version: RemoteVersion, start: int) -> Iterator[bytes]:
        if start and version.validator is None:
            raise ChangedError("the server sends neither ETag nor date, so it cannot be resumed")
        headers = {"Range": f"bytes={start}-", "If-Range": version.validator or ""} if start else {}
        with _http_errors(self.uri), _request(self.uri, headers=headers) as response:
            skip = _bytes_to_skip(response, version, start)
            while chunk := response.read1(CHUNK_SIZE):
                if len(chunk) > skip:
                    yield chunk[skip:]
                skip -= min(skip, len(chunk))


def _bytes_to_skip(response: Any, version: RemoteVersion, start: int) -> int:
    """Returns how many bytes of the response precede `start`; ChangedError for another version."""
    if response.status == http.client.PARTIAL_CONTENT:
        expected_range = f"bytes {start}-{version.size - 1}/{version.size}"
        same_validator = _response_validator(response) in (None, version.validator)
        if not same_validator or response.headers.get("Content-Range") != expected_range:
            raise ChangedError("another version is served now")
        return 0
    # The complete file: the server does not support ranges, or serves another version.
    current = _response_version(response)
    if _response_validator(response) != version.validator or (current and current != version):
        raise ChangedError("another version is served now")
    return start


def _response_validator(response: Any) -> str | None:
    validator: str | None = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return validator


def _response_version(response: Any) -> RemoteVersion | None:
    size = response.headers.get("Content-Length", "")
    return RemoteVersion(int(size), _response_validator(response)) if size.isdecimal() else None


def _request(uri: str, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
    """Returns the response with its body unread; uses the proxies of the environment."""
    request = urllib.request.Request(  # noqa: S310  (`check_base` accepts http and https only)
        uri, method=method, headers={"User-Agent": "segan", **(headers or {})}
    )
    return urllib.request.build_opener(_RedirectHandler).open(request, timeout=READ_TIMEOUT_S)


@contextlib.contextmanager
def _http_errors(uri: str) -> Iterator[None]:
    """Converts the errors of a request and of reading its response."""
    try:
        yield
    except HTTPError as error:
        error.close()
        raise _status_to_error(uri, error) from None
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise StorageError(f"{uri}: {cause}; check --mirror") from None
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        if isinstance(cause, TimeoutError):
            reason = f"no data for {READ_TIMEOUT_S:g} s"
        raise TransientError(f"{uri}: {reason}") from None


def _status_to_error(uri: str, error: HTTPError) -> Exception:
    status = error.code
    if 300 <= status < 400:
        target = error.headers.get("Location")
        return StorageError(f"{uri}: redirects to {target}, expected http or https; check --mirror")
    if status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        return ChangedError("the file is shorter now")
    if status >= 500 or status in (408, 429):
        return TransientError(f"{uri}: server error (HTTP {status})")
    reasons = {
        401: "the server requires a password, which is not supported",
        403: "access denied",
        404: "not found",
    }
    reason = reasons.get(status, "the server rejected the request")
    return StorageError(f"{uri}: {reason} (HTTP {status}); check the address or choose a --mirror")


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if urlsplit(newurl).scheme not in allowed:
            return None
        redirected = super().redirect_request(req, fp, code, msg, headers, newurl)
        if redirected:
            redirected.method = req.get_method()  # before Python 3.13, HEAD would become GET
        return redirected


@dataclass(frozen=True)
class S3File:
    uri: str

    def stat(self) -> RemoteVersion:
        stored = s3.stat_object(self.uri)
        if stored is None or stored.size == 0:
            problem = "expected a zip, found an empty file" if stored else "not found"
            raise StorageError(f"{self.uri}: {problem}; check --mirror")
        return RemoteVersion(stored.size, stored.etag)

    def read(self, version: RemoteVersion, start: int) -> Iterator[bytes]:
        from botocore.exceptions import ClientError

        bucket, key = s3.bucket_and_key(self.uri)
        with s3.storage_errors(self.uri):
            try:
                response = s3.shared_client().get_object(
                    Bucket=bucket, Key=key, Range=f"bytes={start}-", IfMatch=version.validator
                )
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 412, 416):
                    raise ChangedError("the object was replaced or deleted") from None
                raise
            s3.require_fields(self.uri, response, "ETag", "ContentLength")
            if response["ETag"] != version.validator:
                raise ChangedError("the object was replaced")
            with response["Body"] as body:
                while chunk := body.read(CHUNK_SIZE):
                    yield chunk
