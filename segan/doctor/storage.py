"""Checks of the storage at a URI, with a small test file that is deleted again."""

from __future__ import annotations

import contextlib
import statistics
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from segan import storage
from segan.doctor.checks import Check, Outcome, failed, ok, skipped, warning
from segan.doctor.machine import check_disk
from segan.storage import s3
from segan.storage.compare_and_swap import conditional_file

TEST_CONTENT = b"written by segan doctor, to be deleted at once\n"
SKEW_WARNING_S, SKEW_FAILURE_S = 60.0, 900.0  # S3 rejects requests that are 15 minutes off
ROUND_TRIPS, SLOW_ROUND_TRIP_S = 5, 0.25


def storage_checks(uri: str) -> list[Check]:
    """Returns the checks of a folder or bucket; raises UsageError for an invalid URI."""
    probe = StorageProbe(storage.normalise(uri))
    bucket, write = "storage: bucket", "storage: write"
    common = [
        Check(write, probe.check_write, requires=bucket),
        Check("storage: read", probe.check_read, requires=write),
        Check("storage: list", probe.check_list, requires=write),
        Check("storage: conditional writes", probe.check_conditional_writes, requires=write),
    ]
    delete = Check("storage: delete", probe.check_delete, requires=bucket)
    if not storage.is_s3(probe.uri):
        return [Check("storage: disk", lambda: check_disk(Path(probe.uri))), *common, delete]
    return [
        Check("storage: credentials", check_credentials),
        Check(bucket, probe.check_bucket, timeout_s=25),
        Check("storage: clock", probe.check_clock),
        *common,
        Check("storage: round trip", probe.check_round_trip, requires=write),
        delete,
    ]


def check_credentials() -> Outcome:
    """Tells where boto3 finds credentials, without showing them."""
    import boto3

    credentials = boto3.session.Session().get_credentials()
    if credentials is None:
        return failed(
            "none", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
        )
    method = "the environment" if credentials.method == "env" else credentials.method
    return ok(f"found in {method}")


class StorageProbe:
    """A test file in a new folder below the URI."""

    def __init__(self, uri: str):
        self.uri = uri
        self.folder = storage.join(uri, f"segan-doctor-{uuid4().hex[:12]}")
        self.file = storage.join(self.folder, "probe")
        self.is_written = False
        self.clock_skew_s: float | None = None
        self.created_folders: list[Path] = []

    def check_bucket(self) -> Outcome:
        bucket, _ = s3.bucket_and_key(self.uri)
        client = s3.create_client(read_timeout=5)
        client.meta.events.register("after-call.s3", self._record_skew)
        with s3.storage_errors(self.uri):
            client.list_objects_v2(Bucket=bucket, MaxKeys=1)
        return ok(f"{bucket} at {s3.endpoint() or 'AWS'}, region {s3.region()}")

    def check_clock(self) -> Outcome:
        """Compares this machine's clock with the Date header of the store's response."""
        if self.clock_skew_s is None:
            return skipped("the store sent no date")
        seconds = abs(self.clock_skew_s)
        direction = "ahead of" if self.clock_skew_s > 0 else "behind"
        message = f"{seconds:.0f} s {direction} the store's clock"
        advice = "synchronise this machine's clock (NTP); S3 rejects requests 15 minutes off"
        if seconds >= SKEW_FAILURE_S:
            return failed(message, advice)
        if seconds > SKEW_WARNING_S:
            return warning(message, advice)
        return ok(f"within {seconds + 1:.0f} s of the store's clock")

    def check_write(self) -> Outcome:
        if not storage.is_s3(self.uri):
            folder = Path(self.folder)
            self.created_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        storage.write_bytes(self.file, TEST_CONTENT)
        self.is_written = True
        return ok(f"{len(TEST_CONTENT)} bytes")

    def check_read(self) -> Outcome:
        if (content := storage.read_bytes(self.file)) != TEST_CONTENT:
            return failed(
                f"{len(content)} bytes that differ from those written", "use another store"
            )
        return ok("equal to what was written")

    def check_list(self) -> Outcome:
        names = [file.name for file in storage.list_files(self.folder)]
        if names != ["probe"]:
            return failed(f"expected one file, found {names}", "use another store")
        return ok("the file that was written")

    def check_conditional_writes(self) -> Outcome:
        """Tests what the lease needs to keep a second driver from a run."""
        if conditional_file(self.file, quick=True).supports_atomic_cas():
            return ok("supported")
        return warning(
            "not supported: if two trainings of one run start at the same moment, both run for "
            "seconds before one stops",
            "do not start two at once, or use a store that supports conditional writes",
        )

    def check_round_trip(self) -> Outcome:
        bucket, key = s3.bucket_and_key(self.file)
        client, times = s3.shared_client(), []
        with s3.storage_errors(self.uri):
            client.head_object(Bucket=bucket, Key=key)  # opens the connection
            for _ in range(ROUND_TRIPS):
                started_at = time.perf_counter()
                client.head_object(Bucket=bucket, Key=key)
                times.append(time.perf_counter() - started_at)
        median = statistics.median(times)
        if median > SLOW_ROUND_TRIP_S:
            return warning(f"{median * 1000:.0f} ms", "use a bucket in the region of the nodes")
        return ok(f"{median * 1000:.1f} ms")

    def check_delete(self) -> Outcome:
        # Also if the write has failed: one that timed out may have stored the file.
        storage.delete_folder(self.folder)
        for folder in self.created_folders:
            with contextlib.suppress(OSError):  # deleted already, or in use by another process
                folder.rmdir()
        if storage.list_files(self.folder):
            return failed(f"{self.folder} still exists", "delete it, and check the permissions")
        return ok("the test file is gone") if self.is_written else skipped("nothing was written")

    def _record_skew(self, parsed: dict[str, Any], **_: Any) -> None:
        """Reads the date of a response, errors included: a wrong clock can be their cause."""
        headers = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if "date" in headers:
            # The header has whole seconds: on average, the store's clock is half a second ahead.
            store_time = parsedate_to_datetime(headers["date"]).timestamp() + 0.5
            self.clock_skew_s = datetime.now(UTC).timestamp() - store_time
