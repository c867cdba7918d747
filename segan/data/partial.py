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

from segan import s3, storage
from segan.errors import NotFoundError, StorageError

PART = 8 * 1024 * 1024  # S3 takes 10 000 parts of 5 MiB or more

Write = Callable[[bytes], object]


def prepare(place: str, missing: int) -> None:
    """Makes a local folder; StorageError where what is missing has no room in it."""
    if storage.is_s3(place):
        return
    folder = Path(place)
    with _said(place):
        folder.mkdir(parents=True, exist_ok=True)
        here = sum(path.stat().st_size for path in folder.glob("*.partial"))
        free = shutil.disk_usage(folder).free
    if missing - here > free:
        raise StorageError(
            f"{place}: {missing - here} bytes are still to come, and {free} are free; make room or "
            "choose another --dest"
        )


def receiving(uri: str, tag: str) -> contextlib.AbstractContextManager[tuple[int, Write]]:
    """How many bytes of the version `tag` are here, and what to call with the next ones.

    The file is whole at the end of the block; a block that raises leaves what has come.
    """
    return (_into_bucket if storage.is_s3(uri) else _into_folder)(uri, tag)


def forget(uri: str) -> None:
    """Removes what has come of a file."""
    if storage.is_s3(uri):
        _abandon(uri)
        return
    target = Path(uri)
    with _said(uri):
        for partial in target.parent.glob(f"{target.name}.*.partial"):
            partial.unlink()


@contextlib.contextmanager
def _into_folder(uri: str, tag: str) -> Iterator[tuple[int, Write]]:
    target = Path(uri)
    if target.is_dir():
        raise StorageError(f"{uri}: a folder of the file's name; move it or choose another --dest")
    partial = target.with_name(f"{target.name}.{tag}.partial")
    if not partial.exists():
        forget(uri)
    with _said(uri), partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{uri}: another command is fetching it; wait for that") from None
        yield file.tell(), file.write
        file.flush()
        partial.replace(target)


@contextlib.contextmanager
def _said(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reasons: dict[int | None, str] = dict.fromkeys(
            (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
            "; make room and give the same command again: it goes on where it stopped",
        )
        reasons |= dict.fromkeys(
            (errno.EACCES, errno.EPERM, errno.EROFS),
            "; get leave to write there or choose another --dest",
        )
        raise StorageError(
            f"{uri}: {error.strerror}{reasons.get(error.errno, '; choose another --dest')}"
        ) from None


@contextlib.contextmanager
def _into_bucket(uri: str, tag: str) -> Iterator[tuple[int, Write]]:
    upload = _Upload(uri, tag)
    try:
        yield upload.position, upload.write
        upload.finish()
    except NotFoundError:
        raise StorageError(
            f"{uri}: the upload is gone; is another command fetching it? Give this one again"
        ) from None
    storage.delete_file(_note(uri))


class _Upload:
    """A multipart upload: the one that an earlier command began, or else a new one."""

    def __init__(self, uri: str, tag: str) -> None:
        self.uri = uri
        self.client = s3.client(attempts=1)
        bucket, key = s3.bucket_and_key(uri)
        self.at: dict[str, Any] = {"Bucket": bucket, "Key": key}
        self.parts: list[dict[str, Any]] = []
        self.position = self.sent = 0
        self._buffer = bytearray()
        if not self._go_on(_noted(uri), tag):
            _abandon(uri)
            begun = s3.ask(
                uri, lambda: self.client.create_multipart_upload(**self.at), ["UploadId"]
            )
            self.at["UploadId"] = begun["UploadId"]
            storage.write_json(_note(uri), {"tag": tag, "upload": self.at["UploadId"]})

    def write(self, chunk: bytes) -> None:
        self._buffer += chunk
        while len(self._buffer) >= PART:
            self._send(bytes(self._buffer[:PART]))
            del self._buffer[:PART]

    def finish(self) -> None:
        if self._buffer:
            self._send(bytes(self._buffer))
        whole = {"Parts": self.parts}
        try:
            s3.ask(
                self.uri,
                lambda: self.client.complete_multipart_upload(**self.at, MultipartUpload=whole),
            )
        except NotFoundError:
            # It is gone too where the answer to a first attempt was lost, and that had succeeded.
            if storage.size(self.uri) != self.sent:
                raise

    def _send(self, content: bytes) -> None:
        number = len(self.parts) + 1
        sent = s3.ask(
            self.uri,
            lambda: self.client.upload_part(**self.at, PartNumber=number, Body=content),
            ["ETag"],
        )
        self.parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        self.sent += len(content)

    def _go_on(self, noted: tuple[str, str] | None, tag: str) -> bool:
        """Whether the upload noted is of this version and still there; its parts are then ours."""
        if noted is None or noted[0] != tag:
            return False
        where = self.at | {"UploadId": noted[1]}
        found: list[dict[str, Any]] = []
        after, more = 0, True
        try:
            while more:
                page = s3.ask(
                    self.uri,
                    functools.partial(self.client.list_parts, **where, PartNumberMarker=after),
                    ["IsTruncated"],
                )
                found += page.get("Parts", [])
                after, more = page.get("NextPartNumberMarker"), page["IsTruncated"]
        except NotFoundError:
            return False
        self.at = where
        for number, part in enumerate(sorted(found, key=lambda part: part["PartNumber"]), 1):
            if part["PartNumber"] != number:
                break
            self.parts.append({"PartNumber": number, "ETag": part["ETag"]})
            self.position += part["Size"]
        self.sent = self.position
        return True


def _note(uri: str) -> str:
    return f"{uri}.partial"


def _noted(uri: str) -> tuple[str, str] | None:
    """Tag and upload of what an earlier command began."""
    if not storage.exists(_note(uri)):
        return None
    note = storage.read_json(_note(uri))
    try:
        return str(note["tag"]), str(note["upload"])
    except (KeyError, TypeError):
        return None


def _abandon(uri: str) -> None:
    noted = _noted(uri)
    if noted is None:
        return
    bucket, key = s3.bucket_and_key(uri)
    at = {"Bucket": bucket, "Key": key, "UploadId": noted[1]}
    with contextlib.suppress(NotFoundError):
        s3.ask(uri, lambda: s3.shared_client().abort_multipart_upload(**at))
    storage.delete_file(_note(uri))
