"""Resumable writing of large files: the bytes written so far survive a killed process.

In a folder they are in a `.partial` file whose name contains the version's tag. In a bucket they
are the parts of a multipart upload, with an object `.partial` that records the version's tag and
the upload's id. The file appears under its own name only when it is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from segan import storage
from segan.errors import NotFoundError, StorageError
from segan.storage import s3
from segan.storage.files import os_errors
from segan.storage.local import commit_file

PART_SIZE = 8 * 1024 * 1024  # S3 allows 10,000 parts of at least 5 MiB

Write = Callable[[bytes], object]


def prepare_folder(out: str, missing_bytes: int) -> None:
    """Creates a local folder; raises StorageError if its disk has too little free space."""
    if storage.is_s3(out):
        return
    folder = Path(out)
    with os_errors(out):
        folder.mkdir(parents=True, exist_ok=True)
        missing_bytes -= sum(path.stat().st_size for path in folder.glob("*.partial"))
        free = shutil.disk_usage(folder).free
    if missing_bytes > free:
        raise StorageError(
            f"{out}: expected {missing_bytes} bytes of free space, found {free}; free some space "
            "or choose another --out"
        )


def resumable_writer(uri: str, tag: str) -> contextlib.AbstractContextManager[tuple[int, Write]]:
    """Opens a file for resumable writing.

    The context yields how many bytes of the version `tag` are stored already, and a function that
    appends the next bytes. The file is complete when the block ends; a block that raises keeps
    what has been written.
    """
    return (_multipart_writer if storage.is_s3(uri) else _file_writer)(uri, tag)


def discard(uri: str) -> None:
    """Deletes the bytes of an incomplete file."""
    if storage.is_s3(uri):
        _abort(uri)
        return
    target = Path(uri)
    with os_errors(uri):
        for partial in target.parent.glob(f"{target.name}.*.partial"):
            partial.unlink()


@contextlib.contextmanager
def _file_writer(uri: str, tag: str) -> Iterator[tuple[int, Write]]:
    target = Path(uri)
    if target.is_dir():
        raise StorageError(f"{uri}: expected a file, found a folder; choose another --out")
    partial = target.with_name(f"{target.name}.{tag}.partial")
    if not partial.exists():
        discard(uri)
    with os_errors(uri), partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"{uri}: another command is downloading this file; wait until it ends"
            ) from None
        yield file.tell(), file.write
        commit_file(file, target)


@contextlib.contextmanager
def _multipart_writer(uri: str, tag: str) -> Iterator[tuple[int, Write]]:
    upload = _MultipartUpload(uri, tag)
    try:
        yield upload.resume_offset, upload.write
        upload.complete()
    except NotFoundError:
        raise StorageError(
            f"{uri}: the upload was aborted, perhaps by another download; run the command again"
        ) from None
    storage.delete_file(_state_uri(uri))


class _MultipartUpload:
    """A multipart upload: a resumed one if an earlier command began it, else a new one."""

    def __init__(self, uri: str, tag: str) -> None:
        self.uri = uri
        self.client = s3.shared_client()
        bucket, key = s3.bucket_and_key(uri)
        self.upload_args: dict[str, Any] = {"Bucket": bucket, "Key": key}
        self.parts: list[dict[str, Any]] = []
        self.resume_offset = self.bytes_sent = 0
        self._buffer = bytearray()
        if not self._resume(_read_state(uri), tag):
            _abort(uri)
            created = s3.call_with_retry(
                uri, lambda: self.client.create_multipart_upload(**self.upload_args), ["UploadId"]
            )
            self.upload_args["UploadId"] = created["UploadId"]
            storage.write_json(_state_uri(uri), {"tag": tag, "upload_id": created["UploadId"]})

    def write(self, chunk: bytes) -> None:
        self._buffer += chunk
        while len(self._buffer) >= PART_SIZE:
            self._send(bytes(self._buffer[:PART_SIZE]))
            del self._buffer[:PART_SIZE]

    def complete(self) -> None:
        if self._buffer:
            self._send(bytes(self._buffer))
        complete = functools.partial(
            self.client.complete_multipart_upload,
            **self.upload_args,
            MultipartUpload={"Parts": self.parts},
        )
        try:
            s3.call_with_retry(self.uri, complete)
        except NotFoundError:
            # A repeated request also finds no upload if the first one's response was lost.
            if storage.file_size(self.uri) != self.bytes_sent:
                raise

    def _send(self, content: bytes) -> None:
        number = len(self.parts) + 1
        response = s3.call_with_retry(
            self.uri,
            lambda: self.client.upload_part(**self.upload_args, PartNumber=number, Body=content),
            ["ETag"],
        )
        self.parts.append({"PartNumber": number, "ETag": response["ETag"]})
        self.bytes_sent += len(content)

    def _resume(self, state: tuple[str, str] | None, tag: str) -> bool:
        """Adopts the recorded upload and its parts, if it is of this version and still exists."""
        if state is None or state[0] != tag:
            return False
        upload_args = self.upload_args | {"UploadId": state[1]}
        found: list[dict[str, Any]] = []
        after, more = 0, True
        try:
            while more:
                page = s3.call_with_retry(
                    self.uri,
                    functools.partial(
                        self.client.list_parts, **upload_args, PartNumberMarker=after
                    ),
                    ["IsTruncated"],
                )
                found += page.get("Parts", [])
                after, more = page.get("NextPartNumberMarker"), page["IsTruncated"]
        except NotFoundError:
            return False
        self.upload_args = upload_args
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
    """Returns the tag and the upload id that an earlier command recorded."""
    if not storage.exists(_state_uri(uri)):
        return None
    state = storage.read_json(_state_uri(uri))
    try:
        return str(state["tag"]), str(state["upload_id"])
    except (KeyError, TypeError):
        return None


def _abort(uri: str) -> None:
    state = _read_state(uri)
    if state is None:
        return
    bucket, key = s3.bucket_and_key(uri)
    abort = functools.partial(
        s3.shared_client().abort_multipart_upload, Bucket=bucket, Key=key, UploadId=state[1]
    )
    with contextlib.suppress(NotFoundError):
        s3.call_with_retry(uri, abort)
    storage.delete_file(_state_uri(uri))
