"""Objects in S3, through whatever passes by itself; and what cannot pass, in words.

Every call here is repeated while what is wrong may pass (`segan.storage.retry`): an endpoint that
refuses, resets or says nothing, and a store that asks for time. Which is which stands in
`client_errors` alone. Credentials, region and endpoint come from the environment alone.
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
from segan.storage.retry import Backoff, retry

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0  # without a byte
MAX_ATTEMPTS = 5
CHECK_TIMEOUT_S = 10.0
CHUNK_BYTES = 2**20  # of a body that breaks, what came since the last chunk is lost
MAX_KEYS = 1000  # objects that S3 lists, or deletes, in one request
MAX_POOL_CONNECTIONS = 32
MAX_URL_EXPIRY_S = 7 * 24 * 3600

CREDENTIALS_HINT = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and what they may do"
TOKEN_EXPIRED_MESSAGE = (
    "the session token has expired or is none; get new keys and a new AWS_SESSION_TOKEN"  # noqa: S105
)
NO_SPACE_MESSAGE = "the store has no space left; make room in it"
ERROR_MESSAGES: dict[str | int, str] = {
    "ExpiredToken": TOKEN_EXPIRED_MESSAGE,
    "ExpiredTokenException": TOKEN_EXPIRED_MESSAGE,
    "InvalidToken": TOKEN_EXPIRED_MESSAGE,
    "TokenRefreshRequired": TOKEN_EXPIRED_MESSAGE,
    "RequestTimeTooSkewed": "the clock of this machine is off; set it by a time server",
    "NoSuchBucket": "no such bucket; create it or mend its name",
    "KeyTooLongError": "the name is too long for the store; expected at most 1024 bytes",
    "EntityTooLarge": "too large for the store",
    "QuotaExceeded": NO_SPACE_MESSAGE,
    "PreconditionFailed": "changed while it was read; give the command again",
    400: "the store refused the request; check the region and the endpoint",
    403: f"access refused; {CREDENTIALS_HINT}",
    507: NO_SPACE_MESSAGE,
}
NOT_FOUND_ERROR_CODES = ("NoSuchKey", "NoSuchUpload", "404")
# These pass whatever their status says; with 4xx it says that the request is at fault.
TRANSIENT_ERROR_CODES = (
    "BadDigest",  # what arrived is not what was sent
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
)
PERMANENT_STATUSES = (501, 507)  # of 500 to 599


T = TypeVar("T")


@dataclass(frozen=True)
class ObjectInfo:
    """An object: its key, bytes, version and last change."""

    key: str
    size: int
    etag: str
    last_modified: datetime


def stream_object(
    uri: str, start: int = 0, length: int | None = None, etag: str | None = None
) -> Iterator[bytes]:
    """An object's bytes, all of them; a connection that breaks is taken up where it broke.

    Args:
        length: bytes from `start` on; the object must have them. All that follow unless given.
        etag: of the version that is meant; else the one that is there.

    Raises:
        StorageError: it cannot be read; NotFoundError where there is none.
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
                        f"{uri}: asked for bytes from {start} on, got {content_range or 0}"
                    )
                end = start + response["ContentLength"]
                with contextlib.closing(response["Body"]) as body:
                    while chunk := body.read(CHUNK_BYTES):
                        backoff.reset()
                        # From here on this version and no other; before, nothing of it was used.
                        etag, stop = response["ETag"], end
                        start += len(chunk)
                        yield chunk
                if start == end:
                    return
                raise TransientError(f"{uri}: the answer ended {end - start} bytes early")
        except TransientError as error:
            backoff.wait(error)


def put_object(uri: str, content: bytes) -> None:
    """One request, so that it is there whole or not at all, and nothing of it is left over."""
    bucket, key = bucket_and_key(uri)
    call_with_retry(uri, lambda: shared_client().put_object(Bucket=bucket, Key=key, Body=content))


def stat_object(uri: str) -> ObjectInfo | None:
    """The object of this very key.

    By a listing: the answer to a HEAD has no body, and so neither an error's code nor whether it
    is the bucket that is gone.
    """
    bucket, key = bucket_and_key(uri)
    page = _list_page(uri, bucket, key, max_keys=1)
    return next((one for one in _parse_objects(page) if one.key == key), None)


def list_objects(uri: str) -> Iterator[ObjectInfo]:
    """Every object below the prefix, those too that stand for folders; their keys end in `/`."""
    bucket, key = bucket_and_key(uri)
    after: str | None = None
    while True:
        page = _list_page(uri, bucket, f"{key}/" if key else "", continuation_token=after)
        yield from _parse_objects(page)
        if not (after := page.get("NextContinuationToken")):
            return


def delete_object(uri: str) -> None:
    """Nothing happens where there is none, so that a lost answer can be asked for again."""
    bucket, key = bucket_and_key(uri)
    call_with_retry(uri, lambda: shared_client().delete_object(Bucket=bucket, Key=key))


def delete_prefix(uri: str) -> None:
    """Removes all that `find_below` finds."""
    bucket, _ = bucket_and_key(uri)
    keys = [{"Key": one.key} for one in list_objects(uri)]

    def attempt(some: list[dict[str, str]]) -> None:
        # Deleting what is gone succeeds, so a batch that failed in part is tried as a whole.
        answer = shared_client().delete_objects(Bucket=bucket, Delete={"Objects": some})
        for error in answer.get("Errors", []):
            raise to_storage_error(uri, error.get("Code", ""), 0, error.get("Message", ""))
        if len(answer.get("Deleted", [])) < len(some):
            raise TransientError(f"{uri}: the answer broke off")

    for start in range(0, len(keys), MAX_KEYS):
        call_with_retry(uri, functools.partial(attempt, keys[start : start + MAX_KEYS]))


def check_bucket(uri: str, with_retries: bool = False) -> None:
    """Fails with the reason, within seconds unless patient, where the bucket cannot be used."""
    bucket, key = bucket_and_key(uri)
    quick = create_client(read_timeout=CHECK_TIMEOUT_S, max_attempts=1)
    call_with_retry(
        uri,
        lambda: quick.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1),
        timeout_s=None if with_retries else CHECK_TIMEOUT_S / 2,
    )


def call_with_retry(
    uri: str,
    call: Callable[[], T],
    required_fields: Sequence[str] = (),
    timeout_s: float | None = None,
) -> T:
    """The answer to a call of a boto3 client, asked for again while what fails may pass.

    Args:
        needs: fields that the answer has if it is whole.
        seconds: as of `segan.storage.retry.Backoff`.

    Raises:
        StorageError: as of `client_errors`, and TransientError no more.
    """

    def attempt() -> T:
        with storage_errors(uri):
            answer = call()
        require_fields(uri, answer, *required_fields)
        return answer

    return retry(attempt, timeout_s)


def require_fields(uri: str, response: Any, *fields: str) -> None:
    """Raises TransientError where an answer is cut off before these fields.

    A connection that is closed in the middle of an answer's head leaves one that looks like an
    answer, with less in it: a listing of nothing.
    """
    if missing := [field for field in fields if field not in response]:
        raise TransientError(f"{uri}: the answer broke off, there is no {', '.join(missing)}")


def presign(uri: str, expires_in: int) -> str:
    """A link by which anyone can read the file at an `s3://` URI for so long, without keys.

    Made without asking the store, so that the file is there is for the caller to know.

    Raises:
        UsageError: a local URI, or a time outside 1 second to 7 days.
        StorageError: no credentials to sign with.
    """
    if not uri.startswith("s3://"):
        raise UsageError(f"{uri}: only what lies in s3:// has links; this is a local path")
    if not 1 <= expires_in <= MAX_URL_EXPIRY_S:
        raise UsageError(
            f"{expires_in} s: a link lasts from 1 s to {MAX_URL_EXPIRY_S} s, which is 7 days"
        )
    bucket, key = bucket_and_key(uri)
    with storage_errors(uri):
        link: str = create_client().generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=expires_in
        )
    return link


def create_client(read_timeout: float = READ_TIMEOUT_S, max_attempts: int = MAX_ATTEMPTS) -> Any:
    """A boto3 client of one's own; `attempts` are its own, quick ones, below those of `ask`."""
    import boto3
    from botocore.config import Config as BotoConfig

    endpoint()  # said in our words where it is none
    options = BotoConfig(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=read_timeout,
        retries={"total_max_attempts": max_attempts, "mode": "standard"},
        signature_version="s3v4",
        tcp_keepalive=True,
        max_pool_connections=MAX_POOL_CONNECTIONS,
    )
    # A session of its own: the default one keeps the first keys that it ever saw.
    return boto3.session.Session(region_name=region()).client("s3", config=options)


def shared_client() -> Any:
    """This process's boto3 client, for calls through `ask`; it repeats nothing by itself."""
    # Keyed by what it is made from, so that a changed environment is a new connection.
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    return _cached_client(
        os.getpid(), region(), endpoint(), *(os.environ.get(name) for name in names)
    )


@functools.lru_cache(maxsize=4)
def _cached_client(*_: object) -> Any:
    return create_client(READ_TIMEOUT_S, max_attempts=1)


@contextlib.contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turns what a boto3 client raises into a StorageError that names the URI.

    Raises:
        TransientError: the same call may succeed in a while.
        NotFoundError: there is no such object.
        StorageError: it cannot succeed before something is mended, and the message says what.
    """
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except exceptions.ClientError as error:
        code = str(error.response["Error"].get("Code", ""))
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        raise to_storage_error(
            uri, code, status, error.response["Error"].get("Message", "")
        ) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        words = "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise StorageError(f"{uri}: {words}") from None
    except exceptions.SSLError as error:
        kind = StorageError if "CERTIFICATE_VERIFY_FAILED" in str(error) else TransientError
        raise kind(f"{uri}: {unreachable_message('SSLError')}") from None
    except (
        exceptions.ConnectionError,  # refused, or no way there
        exceptions.HTTPClientError,  # reset, silent, or broken off
        exceptions.IncompleteReadError,
        exceptions.CredentialRetrievalError,
        exceptions.FlexibleChecksumError,
        ResponseParserError,
        HTTPError,  # of a body that was not read to its end
    ) as error:
        raise TransientError(f"{uri}: {unreachable_message(type(error).__name__)}") from None
    except exceptions.BotoCoreError as error:
        raise StorageError(f"{uri}: {error}") from None


def to_storage_error(uri: str, code: str, status: int, message: str) -> StorageError:
    """What an error of the store means.

    Args:
        code: "SlowDown"; that of an answer without a body is its status.
        message: the store's words.
    """
    if code in NOT_FOUND_ERROR_CODES:
        return NotFoundError(f"{uri}: not found")
    failing = 500 <= status < 600 and status not in PERMANENT_STATUSES
    if code in TRANSIENT_ERROR_CODES or failing or status in (408, 429):
        return TransientError(f"{uri}: the store is not ready ({code}: {message})")
    if code in ERROR_MESSAGES:
        return StorageError(f"{uri}: {ERROR_MESSAGES[code]}")
    if status in ERROR_MESSAGES:
        return StorageError(f"{uri}: {ERROR_MESSAGES[status]} ({code})")
    return StorageError(f"{uri}: the store refused the request ({code}: {message})")


def bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/")


def unreachable_message(error_name: str) -> str:
    where = endpoint() or "AWS itself (AWS_ENDPOINT_URL is not set)"
    return f"no usable answer from {where} ({error_name}); is it running, and is the address right?"


def region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def endpoint() -> str | None:
    """The store's address, which may be shown; None for AWS itself.

    Raises:
        UsageError: it is no address, or has a name and password in it.
    """
    found = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if found and not re.fullmatch(r"https?://[^@\s/]+(/[^@\s]*)?", found):  # not repeated
        raise UsageError("AWS_ENDPOINT_URL: expected http://host:port or https://host, no password")
    return found or None


def _list_page(
    uri: str,
    bucket: str,
    prefix: str,
    continuation_token: str | None = None,
    max_keys: int = MAX_KEYS,
) -> Any:
    asked = {"ContinuationToken": continuation_token} if continuation_token else {}
    return call_with_retry(
        uri,
        lambda: shared_client().list_objects_v2(
            Bucket=bucket, Prefix=prefix, MaxKeys=max_keys, **asked
        ),
        required_fields=["IsTruncated"],
    )


def _parse_objects(page: Any) -> Iterator[ObjectInfo]:
    for one in page.get("Contents", []):
        yield ObjectInfo(one["Key"], one["Size"], one["ETag"], one["LastModified"].astimezone(UTC))
