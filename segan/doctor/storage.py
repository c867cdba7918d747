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

from segan import storage
from segan.doctor.checks import Check, Outcome, failed, ok, skipped, warning
from segan.doctor.machine import check_disk
from segan.storage import s3
from segan.storage.compare_and_swap import conditional_file

PROBE_CONTENT = b"written by segan doctor, to be deleted at once\n"
SKEW_WARNING_S, SKEW_FAILURE_S = 60.0, 900.0  # seconds; S3 refuses requests that are 15 minutes off
ROUND_TRIPS, SLOW_ROUND_TRIP_S = 5, 0.25
NOT_TRIED = "not tried, because what comes before it fails"


def storage_checks(uri: str) -> list[Check]:
    """Raises UsageError where the URI is none."""
    probe = StorageProbe(storage.normalise(uri))
    common = [
        Check("storage: write", probe.check_write),
        Check("storage: read", probe.check_read),
        Check("storage: list", probe.check_list),
        Check("storage: conditional writes", probe.check_conditional_writes),
    ]
    if not storage.is_s3(probe.uri):
        return [
            Check("storage: disk", lambda: check_disk(Path(probe.uri))),
            *common,
            Check("storage: delete", probe.check_delete),
        ]
    return [
        Check("storage: credentials", check_credentials),
        Check("storage: bucket", probe.check_bucket, timeout_s=25),
        Check("storage: clock", probe.check_clock),
        *common,
        Check("storage: round trip", probe.check_round_trip),
        Check("storage: delete", probe.check_delete),
    ]


def check_credentials() -> Outcome:
    """Whether there are any and where from; what they are is nobody's business."""
    import boto3

    found = boto3.session.Session().get_credentials()
    if found is None:
        return failed(
            "none", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
        )
    return ok(f"there, from {'the environment' if found.method == 'env' else found.method}")


class StorageProbe:
    """A file in a folder of its own below the URI, and what has become of it."""

    def __init__(self, uri: str):
        self.uri = uri
        self.folder = storage.join(uri, f"segan-doctor-{uuid4().hex[:12]}")
        self.file = storage.join(self.folder, "probe")
        self.is_reachable = True
        self.is_written = False
        self.skew: float | None = None
        self.created_folders: list[Path] = []

    def check_bucket(self) -> Outcome:
        self.is_reachable = False
        name, _ = s3.bucket_and_key(self.uri)
        client = self._client()
        client.meta.events.register("after-call.s3", self._record_skew)
        with s3.storage_errors(self.uri):  # not by HEAD, whose answer does not say what is missing
            client.list_objects_v2(Bucket=name, MaxKeys=1)
        self.is_reachable = True
        return ok(f"{name} at {_endpoint_address()}, region {s3.region()}")

    def check_clock(self) -> Outcome:
        """This machine's against the store's, which is in the head of its answer."""
        if self.skew is None:
            return skipped("the store did not say what time it is")
        ahead = f"{abs(self.skew):.0f} s {'ahead of' if self.skew > 0 else 'behind'} the store's"
        advice = "set this machine's clock (NTP); S3 refuses what is 15 minutes off"
        if abs(self.skew) >= SKEW_FAILURE_S:
            return failed(ahead, advice)
        if abs(self.skew) > SKEW_WARNING_S:
            return warning(ahead, advice)
        return ok(f"within {abs(self.skew) + 1:.0f} s of the store's")

    def check_write(self) -> Outcome:
        if not self.is_reachable:
            return skipped(NOT_TRIED)
        if not storage.is_s3(self.uri):
            folder = Path(self.folder)
            self.created_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        storage.write_bytes(self.file, PROBE_CONTENT)
        self.is_written = True
        return ok(f"{len(PROBE_CONTENT)} bytes")

    def check_read(self) -> Outcome:
        if not self.is_written:
            return skipped(NOT_TRIED)
        if (found := storage.read_bytes(self.file)) != PROBE_CONTENT:
            return failed(f"{len(found)} bytes that are not those written", "use another store")
        return ok("as written")

    def check_list(self) -> Outcome:
        if not self.is_written:
            return skipped(NOT_TRIED)
        names = [file.name for file in storage.list_files(self.folder)]
        if names != ["probe"]:
            return failed(f"{names} where one file was written", "use another store")
        return ok("the one that was written")

    def check_conditional_writes(self) -> Outcome:
        """By them two drivers of one run are told apart."""
        if not self.is_written:
            return skipped(NOT_TRIED)
        if conditional_file(self.file, quick=True).supports_atomic_cas():
            return ok("taken at their word")
        return warning(
            "not supported: of two trainings started under one name within the same moment, one "
            "goes on for seconds before it is stopped",
            "start no two at once under one name, or use a store that supports them",
        )

    def check_round_trip(self) -> Outcome:
        if not self.is_written:
            return skipped(NOT_TRIED)
        bucket, key = s3.bucket_and_key(self.file)
        client, times = self._client(), []
        with s3.storage_errors(self.uri):
            client.head_object(Bucket=bucket, Key=key)  # the connection is made
            for _ in range(ROUND_TRIPS):
                began = time.perf_counter()
                client.head_object(Bucket=bucket, Key=key)
                times.append(time.perf_counter() - began)
        middle = statistics.median(times)
        if middle > SLOW_ROUND_TRIP_S:
            return warning(f"{middle * 1000:.0f} ms", "a bucket in the region of the nodes")
        return ok(f"{middle * 1000:.1f} ms")

    def check_delete(self) -> Outcome:
        if not self.is_reachable:
            return skipped(NOT_TRIED)
        # Of a write that was not done in time the object may be there all the same.
        left = self._delete_objects() if storage.is_s3(self.uri) else self._delete_folder()
        if left:
            return failed(f"{self.folder} is still there", "delete it, and look at who may delete")
        return ok("nothing is left of the probe") if self.is_written else skipped(NOT_TRIED)

    def _delete_folder(self) -> bool:
        """It, and those around it that were made for it; returns whether it is still there."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            shutil.rmtree(self.folder)
        for path in self.created_folders[1:]:
            with contextlib.suppress(OSError):  # somebody else may have come to use it
                path.rmdir()
        return Path(self.folder).exists()

    def _delete_objects(self) -> bool:
        """All that begins with the folder's name; returns whether something is left."""
        bucket, prefix = s3.bucket_and_key(self.folder)
        client = self._client()
        with s3.storage_errors(self.uri):
            for one in self._list_objects(client, bucket, prefix):
                client.delete_object(Bucket=bucket, Key=one["Key"])
            return bool(self._list_objects(client, bucket, prefix))

    def _list_objects(self, client: Any, bucket: str, prefix: str) -> list[dict[str, Any]]:
        found: dict[str, Any] = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")
        objects: list[dict[str, Any]] = found.get("Contents", [])
        return objects

    def _client(self) -> Any:
        return s3.create_client(read_timeout=5, max_attempts=1)

    def _record_skew(self, parsed: dict[str, Any], **_: Any) -> None:
        """Of every answer, a refusal too: a clock that is far off is why there is one."""
        head = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if "date" in head:
            theirs = parsedate_to_datetime(head["date"]).timestamp() + 0.5  # it has whole seconds
            self.skew = datetime.now(UTC).timestamp() - theirs


def _endpoint_address() -> str:
    """The endpoint by host and port alone."""
    found = urlsplit(s3.endpoint() or "")
    return f"{found.scheme}://{found.netloc.rpartition('@')[2]}" if found.netloc else "AWS"
