"""Objects in S3, through whatever passes by itself; and what cannot pass, in words.

Every call here is repeated while what is wrong may pass (`segan.patience`): an endpoint that
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
from segan.patience import Patience, patiently

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 60.0  # without a byte
ATTEMPTS = 5
CHECK_SECONDS = 10.0
CHUNK_BYTES = 2**20  # of a body that breaks, what came since the last chunk is lost
BATCH = 1000  # objects that S3 lists, or deletes, in one request
CONNECTIONS = 32
LONGEST_LINK_SECONDS = 7 * 24 * 3600

KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and what they may do"
EXPIRED = "the session token has expired or is none; get new keys and a new AWS_SESSION_TOKEN"
FULL = "the store has no space left; make room in it"
REASONS: dict[str | int, str] = {
    "ExpiredToken": EXPIRED,
    "ExpiredTokenException": EXPIRED,
    "InvalidToken": EXPIRED,
    "TokenRefreshRequired": EXPIRED,
    "RequestTimeTooSkewed": "the clock of this machine is off; set it by a time server",
    "NoSuchBucket": "no such bucket; create it or mend its name",
    "KeyTooLongError": "the name is too long for the store; expected at most 1024 bytes",
    "EntityTooLarge": "too large for the store",
    "QuotaExceeded": FULL,
    "PreconditionFailed": "changed while it was read; give the command again",
    400: "the store refused the request; check the region and the endpoint",
    403: f"access refused; {KEYS}",
    507: FULL,
}
NOT_FOUND = ("NoSuchKey", "NoSuchUpload", "404")
# These pass whatever their status says; with 4xx it says that the request is at fault.
PASSING = (
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
LASTING = (501, 507)  # of 500 to 599


T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """An object: its key, bytes, version and last change."""

    key: str
    size: int
    etag: str
    modified: datetime


def stream(
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
    patience = Patience()
    while True:
        asked: dict[str, str] = {"IfMatch": etag} if etag else {}
        if start or stop is not None:
            asked["Range"] = f"bytes={start}-" + ("" if stop is None else str(stop - 1))
        try:
            with client_errors(uri):
                found = shared_client().get_object(Bucket=bucket, Key=key, **asked)
                check_whole(uri, found, "ETag", "ContentLength")
                given = found.get("ContentRange", "")
                if "Range" in asked and not given.startswith(f"bytes {start}-"):
                    raise StorageError(f"{uri}: asked for bytes from {start} on, got {given or 0}")
                end = start + found["ContentLength"]
                with contextlib.closing(found["Body"]) as body:
                    while chunk := body.read(CHUNK_BYTES):
                        patience.succeeded()
                        # From here on this version and no other; before, nothing of it was used.
                        etag, stop = found["ETag"], end
                        start += len(chunk)
                        yield chunk
                if start == end:
                    return
                raise TransientError(f"{uri}: the answer ended {end - start} bytes early")
        except TransientError as error:
            patience.failed(error)


def write(uri: str, content: bytes) -> None:
    """One request, so that it is there whole or not at all, and nothing of it is left over."""
    bucket, key = bucket_and_key(uri)
    ask(uri, lambda: shared_client().put_object(Bucket=bucket, Key=key, Body=content))


def find(uri: str) -> Found | None:
    """The object of this very key.

    By a listing: the answer to a HEAD has no body, and so neither an error's code nor whether it
    is the bucket that is gone.
    """
    bucket, key = bucket_and_key(uri)
    page = _page(uri, bucket, key, most=1)
    return next((one for one in _found(page) if one.key == key), None)


def find_below(uri: str) -> Iterator[Found]:
    """Every object below the prefix, those too that stand for folders; their keys end in `/`."""
    bucket, key = bucket_and_key(uri)
    after: str | None = None
    while True:
        page = _page(uri, bucket, f"{key}/" if key else "", after=after)
        yield from _found(page)
        if not (after := page.get("NextContinuationToken")):
            return


def delete(uri: str) -> None:
    """Nothing happens where there is none, so that a lost answer can be asked for again."""
    bucket, key = bucket_and_key(uri)
    ask(uri, lambda: shared_client().delete_object(Bucket=bucket, Key=key))


def delete_below(uri: str) -> None:
    """Removes all that `find_below` finds."""
    bucket, _ = bucket_and_key(uri)
    keys = [{"Key": one.key} for one in find_below(uri)]

    def attempt(some: list[dict[str, str]]) -> None:
        # Deleting what is gone succeeds, so a batch that failed in part is tried as a whole.
        answer = shared_client().delete_objects(Bucket=bucket, Delete={"Objects": some})
        for error in answer.get("Errors", []):
            raise refusal(uri, error.get("Code", ""), 0, error.get("Message", ""))
        if len(answer.get("Deleted", [])) < len(some):
            raise TransientError(f"{uri}: the answer broke off")

    for at in range(0, len(keys), BATCH):
        ask(uri, functools.partial(attempt, keys[at : at + BATCH]))


def check(uri: str, patient: bool = False) -> None:
    """Fails with the reason, within seconds unless patient, where the bucket cannot be used."""
    bucket, key = bucket_and_key(uri)
    quick = client(read_seconds=CHECK_SECONDS, attempts=1)
    ask(
        uri,
        lambda: quick.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1),
        seconds=None if patient else CHECK_SECONDS / 2,
    )


def ask(
    uri: str, call: Callable[[], T], needs: Sequence[str] = (), seconds: float | None = None
) -> T:
    """The answer to a call of a boto3 client, asked for again while what fails may pass.

    Args:
        needs: fields that the answer has if it is whole.
        seconds: as of `segan.patience.Patience`.

    Raises:
        StorageError: as of `client_errors`, and TransientError no more.
    """

    def attempt() -> T:
        with client_errors(uri):
            answer = call()
        check_whole(uri, answer, *needs)
        return answer

    return patiently(attempt, seconds)


def check_whole(uri: str, answer: Any, *needs: str) -> None:
    """Raises TransientError where an answer is cut off before these fields.

    A connection that is closed in the middle of an answer's head leaves one that looks like an
    answer, with less in it: a listing of nothing.
    """
    if missing := [field for field in needs if field not in answer]:
        raise TransientError(f"{uri}: the answer broke off, there is no {', '.join(missing)}")


def presign(uri: str, seconds: int) -> str:
    """A link by which anyone can read the file at an `s3://` URI for so long, without keys.

    Made without asking the store, so that the file is there is for the caller to know.

    Raises:
        UsageError: a local URI, or a time outside 1 second to 7 days.
        StorageError: no credentials to sign with.
    """
    if not uri.startswith("s3://"):
        raise UsageError(f"{uri}: only what lies in s3:// has links; this is a local path")
    if not 1 <= seconds <= LONGEST_LINK_SECONDS:
        raise UsageError(
            f"{seconds} s: a link lasts from 1 s to {LONGEST_LINK_SECONDS} s, which is 7 days"
        )
    bucket, key = bucket_and_key(uri)
    with client_errors(uri):
        link: str = client().generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=seconds
        )
    return link


def client(read_seconds: float = REQUEST_SECONDS, attempts: int = ATTEMPTS) -> Any:
    """A boto3 client of one's own; `attempts` are its own, quick ones, below those of `ask`."""
    import boto3
    from botocore.config import Config as BotoConfig

    endpoint()  # said in our words where it is none
    options = BotoConfig(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=read_seconds,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        signature_version="s3v4",
        tcp_keepalive=True,
        max_pool_connections=CONNECTIONS,
    )
    # A session of its own: the default one keeps the first keys that it ever saw.
    return boto3.session.Session(region_name=region()).client("s3", config=options)


def shared_client() -> Any:
    """This process's boto3 client, for calls through `ask`; it repeats nothing by itself."""
    # Keyed by what it is made from, so that a changed environment is a new connection.
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    return _connect(os.getpid(), region(), endpoint(), *(os.environ.get(name) for name in names))


@functools.lru_cache(maxsize=4)
def _connect(*_: object) -> Any:
    return client(REQUEST_SECONDS, attempts=1)


@contextlib.contextmanager
def client_errors(uri: str) -> Iterator[None]:
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
        raise refusal(uri, code, status, error.response["Error"].get("Message", "")) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        words = "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise StorageError(f"{uri}: {words}") from None
    except exceptions.SSLError as error:
        kind = StorageError if "CERTIFICATE_VERIFY_FAILED" in str(error) else TransientError
        raise kind(f"{uri}: {silent('SSLError')}") from None
    except (
        exceptions.ConnectionError,  # refused, or no way there
        exceptions.HTTPClientError,  # reset, silent, or broken off
        exceptions.IncompleteReadError,
        exceptions.CredentialRetrievalError,
        exceptions.FlexibleChecksumError,
        ResponseParserError,
        HTTPError,  # of a body that was not read to its end
    ) as error:
        raise TransientError(f"{uri}: {silent(type(error).__name__)}") from None
    except exceptions.BotoCoreError as error:
        raise StorageError(f"{uri}: {error}") from None


def refusal(uri: str, code: str, status: int, message: str) -> StorageError:
    """What an error of the store means.

    Args:
        code: "SlowDown"; that of an answer without a body is its status.
        message: the store's words.
    """
    if code in NOT_FOUND:
        return NotFoundError(f"{uri}: not found")
    failing = 500 <= status < 600 and status not in LASTING
    if code in PASSING or failing or status in (408, 429):
        return TransientError(f"{uri}: the store is not ready ({code}: {message})")
    if code in REASONS:
        return StorageError(f"{uri}: {REASONS[code]}")
    if status in REASONS:
        return StorageError(f"{uri}: {REASONS[status]} ({code})")
    return StorageError(f"{uri}: the store refused the request ({code}: {message})")


def bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/")


def silent(what: str) -> str:
    where = endpoint() or "AWS itself (AWS_ENDPOINT_URL is not set)"
    return f"no usable answer from {where} ({what}); is it running, and is the address right?"


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


def _page(uri: str, bucket: str, prefix: str, after: str | None = None, most: int = BATCH) -> Any:
    asked = {"ContinuationToken": after} if after else {}
    return ask(
        uri,
        lambda: shared_client().list_objects_v2(
            Bucket=bucket, Prefix=prefix, MaxKeys=most, **asked
        ),
        needs=["IsTruncated"],
    )


def _found(page: Any) -> Iterator[Found]:
    for one in page.get("Contents", []):
        yield Found(one["Key"], one["Size"], one["ETag"], one["LastModified"].astimezone(UTC))
