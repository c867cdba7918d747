"""The storage that a URI names: tried with a small file of our own, which is deleted again."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from segan import s3, storage
from segan.conditional import conditional_file
from segan.doctor.checks import Check, Outcome, fails, ok, skipped, warning
from segan.doctor.machine import disk

CONTENT = b"written by segan doctor, to be deleted at once\n"
SKEW_WARNS, SKEW_FAILS = 60.0, 900.0  # seconds; S3 refuses requests that are 15 minutes off
ROUND_TRIPS, SLOW = 5, 0.25
NOT_TRIED = "not tried, because what comes before it fails"


def store_checks(uri: str) -> list[Check]:
    """Raises UsageError where the URI is none."""
    probe = Probe(storage.normalise(uri))
    common = [
        Check("storage: write", probe.write),
        Check("storage: read", probe.read),
        Check("storage: list", probe.list_files),
        Check("storage: conditional writes", probe.conditional_writes),
    ]
    if not storage.is_s3(probe.uri):
        return [
            Check("storage: disk", lambda: disk(Path(probe.uri))),
            *common,
            Check("storage: delete", probe.delete),
        ]
    return [
        Check("storage: keys", keys),
        Check("storage: bucket", probe.bucket, seconds=25),
        Check("storage: clock", probe.clock),
        *common,
        Check("storage: round trip", probe.round_trip),
        Check("storage: delete", probe.delete),
    ]


def keys() -> Outcome:
    """Whether there are any and where from; what they are is nobody's business."""
    import boto3

    found = boto3.session.Session().get_credentials()
    if found is None:
        return fails(
            "none", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
        )
    return ok(f"there, from {'the environment' if found.method == 'env' else found.method}")


class Probe:
    """A file in a folder of its own below the URI, and what has become of it."""

    def __init__(self, uri: str):
        self.uri = uri
        self.folder = storage.join(uri, f"segan-doctor-{uuid4().hex[:12]}")
        self.file = storage.join(self.folder, "probe")
        self.usable = True
        self.written = False
        self.skew: float | None = None
        self.made: list[Path] = []

    def bucket(self) -> Outcome:
        self.usable = False
        name, _ = s3.bucket_and_key(self.uri)
        client = self._client()
        client.meta.events.register("after-call.s3", self._note_skew)
        with s3.client_errors(self.uri):  # not by HEAD, whose answer does not say what is missing
            client.list_objects_v2(Bucket=name, MaxKeys=1)
        self.usable = True
        return ok(f"{name} at {_where()}, region {s3.region()}")

    def clock(self) -> Outcome:
        """This machine's against the store's, which is in the head of its answer."""
        if self.skew is None:
            return skipped("the store did not say what time it is")
        ahead = f"{abs(self.skew):.0f} s {'ahead of' if self.skew > 0 else 'behind'} the store's"
        advice = "set this machine's clock (NTP); S3 refuses what is 15 minutes off"
        if abs(self.skew) >= SKEW_FAILS:
            return fails(ahead, advice)
        if abs(self.skew) > SKEW_WARNS:
            return warning(ahead, advice)
        return ok(f"within {abs(self.skew) + 1:.0f} s of the store's")

    def write(self) -> Outcome:
        if not self.usable:
            return skipped(NOT_TRIED)
        if not storage.is_s3(self.uri):
            folder = Path(self.folder)
            self.made = [path for path in (folder, *folder.parents) if not path.exists()]
        storage.write_bytes(self.file, CONTENT)
        self.written = True
        return ok(f"{len(CONTENT)} bytes")

    def read(self) -> Outcome:
        if not self.written:
            return skipped(NOT_TRIED)
        if (found := storage.read_bytes(self.file)) != CONTENT:
            return fails(f"{len(found)} bytes that are not those written", "use another store")
        return ok("as written")

    def list_files(self) -> Outcome:
        if not self.written:
            return skipped(NOT_TRIED)
        names = [file.name for file in storage.list_files(self.folder)]
        if names != ["probe"]:
            return fails(f"{names} where one file was written", "use another store")
        return ok("the one that was written")

    def conditional_writes(self) -> Outcome:
        """By them two drivers of one run are told apart."""
        if not self.written:
            return skipped(NOT_TRIED)
        if conditional_file(self.file, quick=True).is_strict():
            return ok("taken at their word")
        return warning(
            "not supported: of two trainings started under one name within the same moment, one "
            "goes on for seconds before it is stopped",
            "start no two at once under one name, or use a store that supports them",
        )

    def round_trip(self) -> Outcome:
        if not self.written:
            return skipped(NOT_TRIED)
        bucket, key = s3.bucket_and_key(self.file)
        client, times = self._client(), []
        with s3.client_errors(self.uri):
            client.head_object(Bucket=bucket, Key=key)  # the connection is made
            for _ in range(ROUND_TRIPS):
                began = time.perf_counter()
                client.head_object(Bucket=bucket, Key=key)
                times.append(time.perf_counter() - began)
        middle = statistics.median(times)
        if middle > SLOW:
            return warning(f"{middle * 1000:.0f} ms", "a bucket in the region of the nodes")
        return ok(f"{middle * 1000:.1f} ms")

    def delete(self) -> Outcome:
        if not self.usable:
            return skipped(NOT_TRIED)
        # Of a write that was not done in time the object may be there all the same.
        left = self._delete_objects() if storage.is_s3(self.uri) else self._delete_folder()
        if left:
            return fails(f"{self.folder} is still there", "delete it, and look at who may delete")
        return ok("nothing is left of the probe") if self.written else skipped(NOT_TRIED)

    def _delete_folder(self) -> bool:
        """It, and those around it that were made for it; returns whether it is still there."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            shutil.rmtree(self.folder)
        for path in self.made[1:]:
            with contextlib.suppress(OSError):  # somebody else may have come to use it
                path.rmdir()
        return Path(self.folder).exists()

    def _delete_objects(self) -> bool:
        """All that begins with the folder's name; returns whether something is left."""
        bucket, prefix = s3.bucket_and_key(self.folder)
        client = self._client()
        with s3.client_errors(self.uri):
            for one in self._objects(client, bucket, prefix):
                client.delete_object(Bucket=bucket, Key=one["Key"])
            return bool(self._objects(client, bucket, prefix))

    def _objects(self, client: Any, bucket: str, prefix: str) -> list[dict[str, Any]]:
        found: dict[str, Any] = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")
        objects: list[dict[str, Any]] = found.get("Contents", [])
        return objects

    def _client(self) -> Any:
        return s3.client(read_seconds=5, attempts=1)

    def _note_skew(self, parsed: dict[str, Any], **_: Any) -> None:
        """Of every answer, a refusal too: a clock that is far off is why there is one."""
        head = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if "date" in head:
            theirs = parsedate_to_datetime(head["date"]).timestamp() + 0.5  # it has whole seconds
            self.skew = datetime.now(UTC).timestamp() - theirs


def _where() -> str:
    """The endpoint by host and port alone."""
    found = urlsplit(s3.endpoint() or "")
    return f"{found.scheme}://{found.netloc.rpartition('@')[2]}" if found.netloc else "AWS"
