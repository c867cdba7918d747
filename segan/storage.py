"""One door to storage: local folders and `s3://` buckets by the same calls.

Credentials, region and endpoint come from the environment alone (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, ...), so no key is ever an argument, a field or part
of something pickled: objects carry URIs, and each process opens them for itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs

from segan.errors import StorageError, UsageError

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 60.0
ATTEMPTS = 5


@dataclass(frozen=True)
class StoredFile:
    """A file below a URI: its name relative to it, with `/` between folders, and its size."""

    name: str
    size: int


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


def read_bytes(uri: str) -> bytes:
    filesystem, path = _open(uri)
    with _named(uri), filesystem.open_input_file(path) as stream:
        return bytes(stream.read())


def write_bytes(uri: str, content: bytes) -> None:
    """Writes whole or not at all: S3 puts are atomic, a local file is renamed into place."""
    filesystem, path = _open(uri)
    with _named(uri):
        if is_s3(uri):
            with filesystem.open_output_stream(path) as stream:
                stream.write(content)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            partial.write_bytes(content)
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


def exists(uri: str) -> bool:
    """Whether there is a file of this very name."""
    filesystem, path = _open(uri)
    with _named(uri):
        return bool(filesystem.get_file_info(path).type == fs.FileType.File)


def list_files(uri: str) -> list[StoredFile]:
    """Every file below `uri`, sorted by name; none when the folder or prefix is not there."""
    filesystem, path = _open(uri)
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    with _named(uri):
        found = filesystem.get_file_info(selector)
    start = len(path.rstrip("/")) + 1
    files = [StoredFile(i.path[start:], i.size) for i in found if i.type == fs.FileType.File]
    return sorted(files, key=lambda file: file.name)


def delete_file(uri: str) -> None:
    """Removes one file; raises StorageError where it is not there."""
    filesystem, path = _open(uri)
    with _named(uri):
        filesystem.delete_file(path)


def delete_folder(uri: str) -> None:
    """Removes the folder or prefix with all below it; nothing happens when it is not there."""
    filesystem, path = _open(uri)
    with _named(uri):
        if filesystem.get_file_info(path).type != fs.FileType.NotFound:
            filesystem.delete_dir(path)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_access(uri: str) -> None:
    """Fails within seconds, and with the reason, where a bucket cannot be used at all.

    Local URIs pass: what is missing there says so by itself.

    Raises:
        StorageError: no credentials, a wrong key, no such bucket, or no answer at the endpoint.
    """
    if not is_s3(uri):
        return
    import boto3
    from botocore.config import Config as BotoConfig
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = urlsplit(normalise(uri)).netloc
    options = BotoConfig(
        connect_timeout=CONNECT_SECONDS, read_timeout=10, retries={"max_attempts": 2}
    )
    try:
        # A session of its own: the default one keeps the first keys that it ever saw.
        session = boto3.session.Session(region_name=_region())
        session.client("s3", config=options).head_bucket(Bucket=bucket)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        raise StorageError(f"{uri}: {_REASONS.get(status, str(error))}") from None
    except BotoCoreError as error:
        raise StorageError(f"{uri}: {_unreachable(error)}") from None


_REASONS = {
    400: "the store refused the request; check the region and the endpoint",
    403: "access refused; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and what they may do",
    404: "no such bucket; create it or mend its name",
}


def _unreachable(error: Exception) -> str:
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return _silent(name)


def _silent(what: str) -> str:
    endpoint = _endpoint() or "AWS itself (AWS_ENDPOINT_URL is not set)"
    return f"no usable answer from {endpoint} ({what}); is it running, and is the address right?"


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    if is_s3(uri):
        return _s3(), uri.removeprefix("s3://").rstrip("/")
    return fs.LocalFileSystem(), normalise(uri)


def _s3() -> fs.S3FileSystem:
    # Keyed by what it is made from, so that a changed environment is a new connection.
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    return _connect(os.getpid(), _region(), _endpoint(), *(os.environ.get(name) for name in names))


@functools.lru_cache(maxsize=4)
def _connect(process: int, region: str, endpoint: str | None, *_: str | None) -> fs.S3FileSystem:
    where = urlsplit(endpoint) if endpoint else None
    return fs.S3FileSystem(
        region=region,
        scheme=where.scheme if where else None,
        endpoint_override=where.netloc if where else None,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # a small file is then one request
    )


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


class _named:  # noqa: N801  (reads as a statement: `with _named(uri):`)
    """Turns what a file system raises into a StorageError that names the URI."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        if isinstance(error, FileNotFoundError):
            raise StorageError(f"{self.uri}: not found") from None
        if isinstance(error, OSError):
            raise StorageError(f"{self.uri}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    text = str(error)
    if "NETWORK_CONNECTION" in text:
        return _silent("NETWORK_CONNECTION")
    for sign, status in (
        ("ACCESS_DENIED", 403),
        ("INVALID_ACCESS_KEY", 403),
        ("SIGNATURE", 403),
        ("NO_SUCH_BUCKET", 404),
    ):
        if sign in text.upper():
            return _REASONS[status]
    return error.strerror or text.splitlines()[0]


def iter_names(uri: str, suffix: str) -> Iterator[str]:
    """The names below `uri` that end in `suffix`, sorted."""
    return (file.name for file in list_files(uri) if file.name.endswith(suffix))
