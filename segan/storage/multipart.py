"""Uploads of large objects, in parts and several at once; each part is retried by itself.

An object appears when its upload is completed, so a failed or killed upload leaves nothing that
could be read. The parts of a killed upload are invisible and take space: let a lifecycle rule of
the bucket abort incomplete uploads.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Any

from segan.errors import NotFoundError, StorageError
from segan.storage import s3

MULTIPART_BYTES = 64 * 2**20  # larger objects are uploaded in parts
PART_BYTES, MAX_PARTS = 16 * 2**20, 10_000
PARTS_AT_ONCE = 4  # each is in memory as a copy

Buffer = bytes | memoryview


def upload(uri: str, buffers: Sequence[Buffer]) -> str:
    """Writes an object from the concatenation of buffers; returns its SHA-256 as hex.

    Beside the buffers, at most `PARTS_AT_ONCE` + 1 parts are in memory, or the object if it is
    small.
    """
    size = sum(len(buffer) for buffer in buffers)
    if size <= MULTIPART_BYTES:
        content = b"".join(buffers)
        s3.put_object(uri, content)
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    _upload_parts(uri, size, _hashed(split(buffers, part_bytes(size)), digest))
    return digest.hexdigest()


def part_bytes(size: int) -> int:
    """The size of the parts of an object, of which S3 accepts `MAX_PARTS`."""
    return max(PART_BYTES, -(-size // MAX_PARTS))


def split(buffers: Sequence[Buffer], size: int) -> Iterator[bytes]:
    """Yields the concatenation of buffers in parts of `size` bytes; the last may be smaller."""
    pending, length = list[Buffer](), 0
    for buffer in buffers:
        rest = memoryview(buffer)
        while len(rest):
            taken = rest[: size - length]
            pending.append(taken)
            length, rest = length + len(taken), rest[len(taken) :]
            if length == size:
                yield b"".join(pending)
                pending, length = [], 0
    if pending:
        yield b"".join(pending)


def _hashed(parts: Iterator[bytes], digest: Any) -> Iterator[bytes]:
    for part in parts:
        digest.update(part)
        yield part


def _upload_parts(uri: str, size: int, parts: Iterator[bytes]) -> None:
    client, (bucket, key) = s3.shared_client(), s3.bucket_and_key(uri)
    target: dict[str, Any] = {"Bucket": bucket, "Key": key}
    created = s3.call_with_retry(
        uri, lambda: client.create_multipart_upload(**target), ["UploadId"]
    )
    target["UploadId"] = created["UploadId"]
    try:
        sent = _send_parts(uri, target, parts)
        s3.call_with_retry(
            uri,
            lambda: client.complete_multipart_upload(**target, MultipartUpload={"Parts": sent}),
        )
    except NotFoundError:
        # A repeated request also finds no upload if the first one's response was lost.
        stored = s3.stat_object(uri)
        if stored is None or stored.size != size:
            raise StorageError(f"{uri}: the upload was aborted by another process") from None
    except StorageError:
        with contextlib.suppress(StorageError):
            s3.call_with_retry(uri, lambda: client.abort_multipart_upload(**target), timeout_s=0)
        raise


def _send_parts(uri: str, target: dict[str, Any], parts: Iterator[bytes]) -> list[dict[str, Any]]:
    client = s3.shared_client()

    def send(number: int, content: bytes) -> dict[str, Any]:
        response = s3.call_with_retry(
            uri,
            lambda: client.upload_part(**target, PartNumber=number, Body=content),
            ["ETag"],
        )
        return {"PartNumber": number, "ETag": response["ETag"]}

    sent, pending = list[dict[str, Any]](), deque[AsyncResult[dict[str, Any]]]()
    with ThreadPool(PARTS_AT_ONCE) as pool:  # of daemons: the process can end at any time
        for number, content in enumerate(parts, 1):
            if len(pending) == PARTS_AT_ONCE:
                sent.append(pending.popleft().get())
            pending.append(pool.apply_async(send, (number, content)))
        sent += [result.get() for result in pending]
    return sent
