"""S3 objects, with retries of transient errors and one-line messages for permanent ones.

Every call is retried (`segan.storage.retry`) while the endpoint refuses or resets connections,
times out or answers with an error such as 503 SlowDown; `storage_errors` decides which errors are
transient. Credentials, region and endpoint come from the environment alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from segan.errors import NotFoundError, StorageError, TransientError, UsageError
from segan.storage.parallel import map_in_threads
from segan.storage.retry import Backoff, retry

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0  # without receiving a byte
CHECK_TIMEOUT_S = 10.0
CHUNK_BYTES = 2**20  # a broken download resumes after the last complete chunk
MAX_LISTED_FOLDERS = 100  # that are listed one by one
MAX_KEYS = 1000  # S3 lists or deletes at most this many objects in one request
MAX_POOL_CONNECTIONS = 32
MAX_URL_EXPIRY_S = 7 * 24 * 3600

CREDENTIALS_HINT = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and their permissions"
TOKEN_EXPIRED_MESSAGE = (
    "the session token is expired or invalid; get new credentials and set AWS_SESSION_TOKEN"  # noqa: S105
)
NO_SPACE_MESSAGE = "the store is full; free some space in it"
ERROR_MESSAGES: dict[str | int, str] = {
    "ExpiredToken": TOKEN_EXPIRED_MESSAGE,
    "ExpiredTokenException": TOKEN_EXPIRED_MESSAGE,
    "InvalidToken": TOKEN_EXPIRED_MESSAGE,
    "TokenRefreshRequired": TOKEN_EXPIRED_MESSAGE,
    "RequestTimeTooSkewed": "this machine's clock is wrong; synchronise it with a time server",
    "NoSuchBucket": "bucket does not exist; create it or correct the name",
    "KeyTooLongError": "the name is too long; expected at most 1024 bytes",
    "EntityTooLarge": "the file is too large for the store",
    "QuotaExceeded": NO_SPACE_MESSAGE,
    "PreconditionFailed": "object changed while it was being read; run the command again",
    400: "the store rejected the request; check AWS_REGION and AWS_ENDPOINT_URL",
    403: f"access denied; {CREDENTIALS_HINT}",
    507: NO_SPACE_MESSAGE,
}
NOT_FOUND_ERROR_CODES = ("NoSuchKey", "NoSuchUpload", "404")
# Transient whatever the HTTP status: with some stores it is 4xx.
TRANSIENT_ERROR_CODES = (
    "BadDigest",  # the request was corrupted on its way
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
)
PERMANENT_STATUSES = (501, 507)  # all other 5xx are transient

T = TypeVar("T")


@dataclass(frozen=True)
class ObjectInfo:
    """An object's key, size in bytes, ETag and time of its last change."""

    key: str
    size: int
    etag: str
    last_modified: datetime


def stream_object(
    uri: str, start: int = 0, length: int | None = None, etag: str | None = None
) -> Iterator[bytes]:
    """Yields an object's bytes in chunks; a broken connection is resumed at the last chunk.

    Args:
        start: offset of the first byte.
        length: number of bytes, which the object must have; by default, all bytes from `start`.
        etag: ETag that the object must have; by default, that of the first response.

    Raises:
        NotFoundError: the object does not exist.
        StorageError: the object cannot be read, or changed while it was being read.
    """
    bucket, key = bucket_and_key(uri)
    stop = None if length is None else start + length
    backoff = Backoff()
    while True:
        request: dict[str, str] = {"IfMatch": etag} if etag else {}
        if start or stop is not None:
            request["Range"] = f"bytes={start}-" + ("" if stop is None else str(stop - 1))
        try:
            with storage_errors(uri):
                response = shared_client().get_object(Bucket=bucket, Key=key, **request)
                require_fields(uri, response, "ETag", "ContentLength")
                content_range = response.get("ContentRange", "")
                if "Range" in request and not content_range.startswith(f"bytes {start}-"):
                    raise StorageError(
                        f"{uri}: expected bytes from {start} on, got {content_range or 'all'}; "
                        "use a store that supports ranged requests"
                    )
                end = start + response["ContentLength"]
                with contextlib.closing(response["Body"]) as body:
                    while chunk := body.read(CHUNK_BYTES):
                        backoff.reset()
                        # Later requests must return the same version as this first chunk.
                        etag, stop = response["ETag"], end
                        start += len(chunk)
                        yield chunk
                if start == end:
                    return
                raise TransientError(f"{uri}: the response ended {end - start} bytes early")
        except TransientError as error:
            backoff.wait(error)


def put_object(uri: str, content: bytes) -> None:
    """Writes an object in one request, which is atomic (a multipart upload could leave parts)."""
    bucket, key = bucket_and_key(uri)
    call_with_retry(uri, lambda: shared_client().put_object(Bucket=bucket, Key=key, Body=content))


def stat_object(uri: str) -> ObjectInfo | None:
    """Returns the object with exactly this key, or None.

    Lists the key instead of sending a HEAD request: the response to HEAD has no body, so it does
    not tell a missing object from a missing bucket.
    """
    bucket, key = bucket_and_key(uri)
    page = _list_page(uri, bucket, Prefix=key, MaxKeys=1)
    return next((stored for stored in _parse_objects(page) if stored.key == key), None)


def list_objects(uri: str) -> Iterator[ObjectInfo]:
    """Yields all objects below the prefix, folder markers (keys that end in `/`) included."""
    for page in _list_pages(uri, _folder_prefix(uri)):
        yield from _parse_objects(page)


def list_objects_in_parallel(uri: str) -> list[ObjectInfo]:
    """All objects below the prefix, the folders directly below it listed side by side.

    A listing's pages of 1000 keys come one after another. Of many folders, which may hold few
    objects each, all are listed as one.
    """
    objects: list[ObjectInfo] = []
    folders: list[str] = []
    for page in _list_pages(uri, _folder_prefix(uri), Delimiter="/"):
        objects += _parse_objects(page)
        folders += [item["Prefix"] for item in page.get("CommonPrefixes", [])]
        if len(folders) > MAX_LISTED_FOLDERS:
            return list(list_objects(uri))

    def list_folder(prefix: str) -> list[ObjectInfo]:
        return [found for page in _list_pages(uri, prefix) for found in _parse_objects(page)]

    return objects + [found for part in map_in_threads(list_folder, folders) for found in part]


def delete_object(uri: str) -> None:
    """Deletes an object if it exists, so that repeating a request is harmless."""
    bucket, key = bucket_and_key(uri)
    call_with_retry(uri, lambda: shared_client().delete_object(Bucket=bucket, Key=key))


def delete_prefix(uri: str) -> None:
    """Deletes all objects below the prefix."""
    bucket, _ = bucket_and_key(uri)
    keys = [{"Key": stored.key} for stored in list_objects(uri)]

    def delete_batch(batch: list[dict[str, str]]) -> None:
        # Deleting a missing object succeeds, so a batch that failed in part is repeated as one.
        response = shared_client().delete_objects(Bucket=bucket, Delete={"Objects": batch})
        for error in response.get("Errors", []):
            raise to_storage_error(uri, error.get("Code", ""), 0, error.get("Message", ""))
        if len(response.get("Deleted", [])) < len(batch):
            raise TransientError(f"{uri}: truncated response")

    for start in range(0, len(keys), MAX_KEYS):
        call_with_retry(uri, functools.partial(delete_batch, keys[start : start + MAX_KEYS]))


def check_bucket(uri: str, with_retries: bool = False) -> None:
    """Raises StorageError if the bucket cannot be listed: within seconds, or after all retries."""
    bucket, key = bucket_and_key(uri)
    client = create_client(read_timeout=CHECK_TIMEOUT_S)
    call_with_retry(
        uri,
        lambda: client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1),
        timeout_s=None if with_retries else CHECK_TIMEOUT_S / 2,
    )


def call_with_retry(
    uri: str,
    call: Callable[[], T],
    required_fields: Sequence[str] = (),
    timeout_s: float | None = None,
) -> T:
    """Returns the response to a call of a boto3 client, repeated after transient errors.

    Args:
        required_fields: fields of a complete response.
        timeout_s: as for `segan.storage.retry.Backoff`.

    Raises:
        NotFoundError: the object does not exist.
        StorageError: a permanent error occurred, or the deadline passed.
    """

    def attempt() -> T:
        with storage_errors(uri):
            response = call()
        require_fields(uri, response, *required_fields)
        return response

    return retry(attempt, timeout_s)


def require_fields(uri: str, response: Any, *fields: str) -> None:
    """Raises TransientError if a response lacks one of these fields.

    boto3 accepts a response whose headers were cut off: it would look like an empty listing.
    """
    if missing := [field for field in fields if field not in response]:
        raise TransientError(f"{uri}: truncated response, missing {', '.join(missing)}")


def presign(uri: str, expires_in: int) -> str:
    """Returns a URL with which anyone can read an object for `expires_in` seconds.

    Signs locally and sends no request; whether the object exists is not checked.

    Raises:
        UsageError: `uri` is a local path, or `expires_in` is not between 1 second and 7 days.
        StorageError: there are no credentials to sign with.
    """
    if not uri.startswith("s3://"):
        raise UsageError(f"{uri}: expected an s3:// URI; a local file has no URL")
    if not 1 <= expires_in <= MAX_URL_EXPIRY_S:
        raise UsageError(f"{expires_in} s: expected 1 to {MAX_URL_EXPIRY_S} s (7 days)")
    bucket, key = bucket_and_key(uri)
    with storage_errors(uri):
        url: str = create_client().generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=expires_in
        )
    return url


def create_client(read_timeout: float = READ_TIMEOUT_S) -> Any:
    """Returns a new boto3 client, which does not retry by itself: `call_with_retry` does.

    Raises:
        UsageError: the endpoint or the AWS configuration (profile, region, file) is invalid.
    """
    import boto3
    from botocore.config import Config as BotoConfig
    from botocore.exceptions import BotoCoreError

    endpoint()  # raises UsageError; botocore's message would repeat a password in the URL
    options = BotoConfig(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=read_timeout,
        retries={"total_max_attempts": 1},
        signature_version="s3v4",
        tcp_keepalive=True,
        max_pool_connections=MAX_POOL_CONNECTIONS,
    )
    try:
        # A new session, since the default session keeps the first credentials that it finds.
        return boto3.session.Session(region_name=region()).client("s3", config=options)
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"invalid AWS configuration: {_one_line(error)}") from None


def shared_client() -> Any:
    """Returns this process's boto3 client, for use with `call_with_retry`."""
    # The arguments are the cache's key: a changed environment gets a new client.
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    return _cached_client(
        os.getpid(), region(), endpoint(), *(os.environ.get(name) for name in names)
    )


@functools.lru_cache(maxsize=4)
def _cached_client(*_: object) -> Any:
    return create_client(READ_TIMEOUT_S)


@contextlib.contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Converts the errors of a boto3 client into a StorageError that names the URI.

    Raises:
        TransientError: the same call may succeed later.
        NotFoundError: the object does not exist.
        StorageError: the error is permanent; the message says what to do.
    """
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except exceptions.ClientError as error:
        details = error.response["Error"]
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        code, message = str(details.get("Code", "")), details.get("Message", "")
        raise to_storage_error(uri, code, status, message) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise StorageError(f"{uri}: no credentials; {advice}") from None
    except exceptions.SSLError as error:
        kind = StorageError if "CERTIFICATE_VERIFY_FAILED" in str(error) else TransientError
        raise kind(f"{uri}: {unreachable_message('SSLError')}") from None
    except (
        exceptions.ConnectionError,  # refused or unreachable
        exceptions.HTTPClientError,  # reset, timed out or closed early
        exceptions.IncompleteReadError,
        exceptions.CredentialRetrievalError,
        exceptions.FlexibleChecksumError,
        ResponseParserError,
        HTTPError,  # while reading the body
    ) as error:
        raise TransientError(f"{uri}: {unreachable_message(type(error).__name__)}") from None
    except exceptions.BotoCoreError as error:
        raise StorageError(f"{uri}: {_one_line(error)}") from None


def to_storage_error(uri: str, code: str, status: int, message: str) -> StorageError:
    """Classifies an error response and returns the exception to raise.

    Args:
        code: S3 error code, such as "SlowDown"; the HTTP status if the response has no body.
        message: the store's own text.
    """
    if code in NOT_FOUND_ERROR_CODES:
        return NotFoundError(f"{uri}: not found")
    server_error = 500 <= status < 600 and status not in PERMANENT_STATUSES
    if code in TRANSIENT_ERROR_CODES or server_error or status in (408, 429):
        return TransientError(f"{uri}: the store is unavailable ({code}: {message})")
    if code in ERROR_MESSAGES:
        return StorageError(f"{uri}: {ERROR_MESSAGES[code]}")
    if status in ERROR_MESSAGES:
        return StorageError(f"{uri}: {ERROR_MESSAGES[status]} ({code})")
    return StorageError(f"{uri}: the store rejected the request ({code}: {message})")


def bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/")


def unreachable_message(error_name: str) -> str:
    where = endpoint() or "AWS (AWS_ENDPOINT_URL is not set)"
    return (
        f"no valid response from {where} ({error_name}); check the address and that it is running"
    )


def region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def endpoint() -> str | None:
    """Returns the store's URL, which contains no secret; None for AWS.

    Raises:
        UsageError: the URL is invalid or contains a user name and password.
    """
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if url and not re.fullmatch(r"https?://[^@\s/]+(/[^@\s]*)?", url):  # may contain a password
        raise UsageError("AWS_ENDPOINT_URL: expected http://host:port or https://host, no password")
    return url or None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _folder_prefix(uri: str) -> str:
    _, key = bucket_and_key(uri)
    return f"{key}/" if key else ""


def _list_pages(uri: str, prefix: str, **options: str) -> Iterator[Any]:
    bucket, _ = bucket_and_key(uri)
    token: str | None = None
    while True:
        resume = {"ContinuationToken": token} if token else {}
        page = _list_page(uri, bucket, Prefix=prefix, MaxKeys=MAX_KEYS, **options, **resume)
        yield page
        if not (token := page.get("NextContinuationToken")):
            return


def _list_page(uri: str, bucket: str, **request: Any) -> Any:
    return call_with_retry(
        uri,
        lambda: shared_client().list_objects_v2(Bucket=bucket, **request),
        required_fields=["IsTruncated"],
    )


def _parse_objects(page: Any) -> Iterator[ObjectInfo]:
    for item in page.get("Contents", []):
        modified = item["LastModified"].astimezone(UTC)
        yield ObjectInfo(item["Key"], item["Size"], item["ETag"], modified)
