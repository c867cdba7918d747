"""Files that arrive in pieces: what has come stays when the process dies, and is gone on with.

In a folder that is a `.partial` beside the file, the version in its name; in a bucket a multipart
upload, and an object `.partial` that says whose version's upload it is, since an upload itself
cannot tell. In both, the file is there under its own name only when it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from segan import storage
from segan.errors import NotFoundError, StorageError
from segan.storage import s3

PART_SIZE = 8 * 1024 * 1024  # S3 takes 10 000 parts of 5 MiB or more

Write = Callable[[bytes], object]


def prepare_folder(out: str, missing_bytes: int) -> None:
    """Makes a local folder; StorageError where what is missing has no room in it."""
    if storage.is_s3(out):
        return
    folder = Path(out)
    with _storage_errors(out):
        folder.mkdir(parents=True, exist_ok=True)
        here = sum(path.stat().st_size for path in folder.glob("*.partial"))
        free = shutil.disk_usage(folder).free
    if missing_bytes - here > free:
        raise StorageError(
            f"{out}: {missing_bytes - here} bytes are still to come, and {free} are free; "
            f"make room or "
            "choose another --out"
        )


def resumable_writer(uri: str, tag: str) -> contextlib.AbstractContextManager[tuple[int, Write]]:
    """How many bytes of the version `tag` are here, and what to call with the next ones.

    The file is whole at the end of the block; a block that raises leaves what has come.
    """
    return (_multipart_writer if storage.is_s3(uri) else _file_writer)(uri, tag)


def discard(uri: str) -> None:
    """Removes what has come of a file."""
    if storage.is_s3(uri):
        _abort(uri)
        return
    target = Path(uri)
    with _storage_errors(uri):
        for partial in target.parent.glob(f"{target.name}.*.partial"):
            partial.unlink()


@contextlib.contextmanager
def _file_writer(uri: str, tag: str) -> Iterator[tuple[int, Write]]:
    target = Path(uri)
    if target.is_dir():
        raise StorageError(f"{uri}: a folder of the file's name; move it or choose another --out")
    partial = target.with_name(f"{target.name}.{tag}.partial")
    if not partial.exists():
        discard(uri)
    with _storage_errors(uri), partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{uri}: another command is fetching it; wait for that") from None
        yield file.tell(), file.write
        file.flush()
        partial.replace(target)


@contextlib.contextmanager
def _storage_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reasons: dict[int | None, str] = dict.fromkeys(
            (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
            "; make room and give the same command again: it goes on where it stopped",
        )
        reasons |= dict.fromkeys(
            (errno.EACCES, errno.EPERM, errno.EROFS),
            "; get leave to write there or choose another --out",
        )
        raise StorageError(
            f"{uri}: {error.strerror}{reasons.get(error.errno, '; choose another --out')}"
        ) from None


@contextlib.contextmanager
def _multipart_writer(uri: str, tag: str) -> Iterator[tuple[int, Write]]:
    upload = _MultipartUpload(uri, tag)
    try:
        yield upload.resume_offset, upload.write
        upload.complete()
    except NotFoundError:
        raise StorageError(
            f"{uri}: the upload is gone; is another command fetching it? Give this one again"
        ) from None
    storage.delete_file(_state_uri(uri))


class _MultipartUpload:
    """A multipart upload: the one that an earlier command began, or else a new one."""

    def __init__(self, uri: str, tag: str) -> None:
        self.uri = uri
        self.client = s3.create_client(max_attempts=1)
        bucket, key = s3.bucket_and_key(uri)
        self.upload_args: dict[str, Any] = {"Bucket": bucket, "Key": key}
        self.parts: list[dict[str, Any]] = []
        self.resume_offset = self.bytes_sent = 0
        self._buffer = bytearray()
        if not self._resume(_read_state(uri), tag):
            _abort(uri)
            begun = s3.call_with_retry(
                uri, lambda: self.client.create_multipart_upload(**self.upload_args), ["UploadId"]
            )
            self.upload_args["UploadId"] = begun["UploadId"]
            storage.write_json(
                _state_uri(uri), {"tag": tag, "upload_id": self.upload_args["UploadId"]}
            )

    def write(self, chunk: bytes) -> None:
        self._buffer += chunk
        while len(self._buffer) >= PART_SIZE:
            self._send(bytes(self._buffer[:PART_SIZE]))
            del self._buffer[:PART_SIZE]

    def complete(self) -> None:
        if self._buffer:
            self._send(bytes(self._buffer))
        whole = {"Parts": self.parts}
        try:
            s3.call_with_retry(
                self.uri,
                lambda: self.client.complete_multipart_upload(
                    **self.upload_args, MultipartUpload=whole
                ),
            )
        except NotFoundError:
            # It is gone too where the answer to a first attempt was lost, and that had succeeded.
            if storage.file_size(self.uri) != self.bytes_sent:
                raise

    def _send(self, content: bytes) -> None:
        number = len(self.parts) + 1
        sent = s3.call_with_retry(
            self.uri,
            lambda: self.client.upload_part(**self.upload_args, PartNumber=number, Body=content),
            ["ETag"],
        )
        self.parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        self.bytes_sent += len(content)

    def _resume(self, state: tuple[str, str] | None, tag: str) -> bool:
        """Whether the upload noted is of this version and still there; its parts are then ours."""
        if state is None or state[0] != tag:
            return False
        where = self.upload_args | {"UploadId": state[1]}
        found: list[dict[str, Any]] = []
        after, more = 0, True
        try:
            while more:
                page = s3.call_with_retry(
                    self.uri,
                    functools.partial(self.client.list_parts, **where, PartNumberMarker=after),
                    ["IsTruncated"],
                )
                found += page.get("Parts", [])
                after, more = page.get("NextPartNumberMarker"), page["IsTruncated"]
        except NotFoundError:
            return False
        self.upload_args = where
        for number, part in enumerate(sorted(found, key=lambda part: part["PartNumber"]), 1):
            if part["PartNumber"] != number:
                break
            self.parts.append({"PartNumber": number, "ETag": part["ETag"]})
            self.resume_offset += part["Size"]
        self.bytes_sent = self.resume_offset
        return True


def _state_uri(uri: str) -> str:
    return f"{uri}.partial"


def _read_state(uri: str) -> tuple[str, str] | None:
    """Tag and upload of what an earlier command began."""
    if not storage.exists(_state_uri(uri)):
        return None
    note = storage.read_json(_state_uri(uri))
    try:
        return str(note["tag"]), str(note["upload_id"])
    except (KeyError, TypeError):
        return None


def _abort(uri: str) -> None:
    noted = _read_state(uri)
    if noted is None:
        return
    bucket, key = s3.bucket_and_key(uri)
    at = {"Bucket": bucket, "Key": key, "UploadId": noted[1]}
    with contextlib.suppress(NotFoundError):
        s3.call_with_retry(uri, lambda: s3.shared_client().abort_multipart_upload(**at))
    storage.delete_file(_state_uri(uri))
