"""Storage faults: transient errors are retried, permanent errors are raised at once.

The S3 server is real; the proxy of `tests.fault_proxy` injects faults into its connections, and
some tests suspend or kill the server itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import posixpath
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.local.s3 import S3Server, s3_server
from segan import storage
from segan.data.archive.reader import open_archive
from segan.data.download import partial
from segan.data.download.remote import S3File, iter_bytes
from segan.data.ingest import IngestOptions, ingest, local_executor
from segan.data.synthetic import generate_archive
from segan.errors import StorageError, TransientError
from segan.storage import files, retry, s3
from segan.storage.compare_and_swap import conditional_file
from tests.fault_proxy import Fault, FaultProxy, run_fault_proxy
from tests.infra.process_utils import wait_for
from tests.samples import read_samples

pytestmark = pytest.mark.integration

SECRET = "a-secret-that-must-stay-in-the-environment"
SMALL = random.Random(0).randbytes(300_000)
LARGE = random.Random(1).randbytes(2_500_000)  # three chunks of s3.CHUNK_BYTES
HUGE = random.Random(2).randbytes(9_000_000)  # two parts of a multipart upload
# These replace the values of s3 and retry in these tests, which scales their clock.
READ_TIMEOUT_S = 0.5
INITIAL_BACKOFF_S, MAX_BACKOFF_S = 0.02, 0.1
FOREVER_S = 100 * READ_TIMEOUT_S  # longer than the retry timeout: only `clear` ends it


@pytest.fixture(scope="module")
def server(clean_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A separate server, so that faults hit no request of other tests."""
    with s3_server(tmp_path_factory.mktemp("s3")) as started:
        yield started


@pytest.fixture(scope="module")
def proxy(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    with (
        run_fault_proxy(server.endpoint, tmp_path_factory.mktemp("faults")) as started,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in (server.environment | {"AWS_ENDPOINT_URL": started.endpoint}).items():
            patch.setenv(name, value)
        patch.setenv(retry.TIMEOUT_VARIABLE, "40")
        patch.setattr(s3, "READ_TIMEOUT_S", READ_TIMEOUT_S)
        patch.setattr(retry, "INITIAL_BACKOFF_S", INITIAL_BACKOFF_S)
        patch.setattr(retry, "MAX_BACKOFF_S", MAX_BACKOFF_S)
        yield started


@pytest.fixture
def faults(proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy in front of the server, without faults before and after the test."""
    yield proxy
    proxy.clear()


@pytest.fixture(scope="module")
def root(server: S3Server, proxy: FaultProxy) -> str:
    server.create_bucket("storage-faults")
    return "s3://storage-faults"


@pytest.fixture
def prefix_uri(root: str, faults: FaultProxy, request: pytest.FixtureRequest) -> str:
    """A prefix with exactly two files, `small` and `large`."""
    uri = f"{root}/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"
    storage.write_bytes(f"{uri}/small", SMALL)
    storage.write_bytes(f"{uri}/large", LARGE)
    faults.pop_requests()
    return uri


@pytest.fixture
def huge_uri(root: str, faults: FaultProxy, request: pytest.FixtureRequest) -> str:
    """The URI of a file that is larger than a part of a multipart upload."""
    uri = f"{root}/huge-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}/huge"
    storage.write_bytes(uri, HUGE)
    faults.pop_requests()
    return uri


def error_message(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(StorageError) as caught:
        call(*arguments)
    assert type(caught.value) is not TransientError, "retries are over"
    return str(caught.value)


# The functions of `storage`, each with a check of its result

Call = Callable[[str, Path], None]


def read(place: str, _: Path) -> None:
    assert storage.read_bytes(f"{place}/small") == SMALL


def read_large(place: str, _: Path) -> None:
    assert storage.read_bytes(f"{place}/large") == LARGE


def read_range(place: str, _: Path) -> None:
    with storage.RandomAccessFile(f"{place}/small") as file:
        assert file.read_at(1000, 200_000) == SMALL[1000:201_000]


def read_in_chunks(place: str, _: Path) -> None:
    assert storage.file_sha256(f"{place}/large") == storage.sha256(LARGE)


def download(place: str, folder: Path) -> None:
    storage.download(f"{place}/large", str(folder / "large"), storage.sha256(LARGE))
    assert (folder / "large").read_bytes() == LARGE


def write(place: str, _: Path) -> None:
    storage.write_bytes(f"{place}/new", SMALL)


def write_large(place: str, _: Path) -> None:
    storage.write_bytes(f"{place}/new", LARGE)


def read_version(place: str, _: Path) -> None:
    version = conditional_file(f"{place}/small").read()
    assert version is not None
    assert version.content == SMALL


def swap(place: str, _: Path) -> None:
    conditional_file(f"{place}/new").compare_and_swap(None, SMALL)  # False if a response is lost


def list_names(place: str, _: Path) -> None:
    assert {"large", "small"} <= {file.name for file in storage.list_files(place)}


def stat_file(place: str, _: Path) -> None:
    assert storage.file_size(f"{place}/small") == len(SMALL)
    assert not storage.exists(f"{place}/sma")


def delete(place: str, _: Path) -> None:
    storage.delete_file(f"{place}/small")


def delete_all(place: str, _: Path) -> None:
    storage.delete_folder(place)


READS: list[Call] = [read, read_version, read_large, read_range, read_in_chunks, download]
WRITES: list[Call] = [write, swap, write_large]
CALLS: list[Call] = [*READS, *WRITES, list_names, stat_file, delete, delete_all]
EXPECTED_CONTENTS: dict[Call, dict[str, bytes]] = {
    write: {"small": SMALL, "large": LARGE, "new": SMALL},
    swap: {"small": SMALL, "large": LARGE, "new": SMALL},
    write_large: {"small": SMALL, "large": LARGE, "new": LARGE},
    delete: {"large": LARGE},
    delete_all: {},
}


def read_contents(place: str) -> dict[str, bytes]:
    return {f.name: storage.read_bytes(f"{place}/{f.name}") for f in storage.list_files(place)}


def function_name(value: object) -> str | None:
    return getattr(value, "__name__", None)


TRANSIENT_FAULTS = {
    "slow down": Fault("answer", times=3),
    "internal error": Fault("answer", times=2, status=500, code="InternalError"),
    "request timeout": Fault("answer", status=400, code="RequestTimeout"),
    "reset before the request": Fault("reset"),
    "reset in the response headers": Fault("reset", times=2, direction="down", after_bytes=40),
    "response lost": Fault("reset", times=2, direction="down"),
    "response cut": Fault("cut", direction="down", after_bytes=60),
    "hang": Fault("hang", seconds=FOREVER_S),
    "hang after the request": Fault("hang", direction="down", seconds=FOREVER_S),
    "refused": Fault("refuse", seconds=READ_TIMEOUT_S),
}
BODY_FAULTS = {
    "reset": Fault("reset", times=3, after_bytes=100_000),
    "cut": Fault("cut", times=3, after_bytes=100_000),
    "hang": Fault("hang", seconds=FOREVER_S, after_bytes=100_000),
}


@pytest.mark.parametrize("call", CALLS, ids=function_name)
@pytest.mark.parametrize("fault", TRANSIENT_FAULTS.values(), ids=TRANSIENT_FAULTS)
def test_every_call_survives_transient_faults(
    faults: FaultProxy,
    prefix_uri: str,
    tmp_path: Path,
    call: Call,
    fault: Fault,
) -> None:
    faults.inject(fault)
    call(prefix_uri, tmp_path)
    met = [request for request in faults.pop_requests() if request.endswith(f"!{fault.kind}")]
    assert fault.kind == "refuse" or len(met) == fault.times
    faults.clear()
    assert read_contents(prefix_uri) == EXPECTED_CONTENTS.get(
        call, {"small": SMALL, "large": LARGE}
    )


@pytest.mark.parametrize("call", READS + WRITES, ids=function_name)
@pytest.mark.parametrize("fault", BODY_FAULTS.values(), ids=BODY_FAULTS)
def test_an_interrupted_body_is_completed(
    faults: FaultProxy,
    prefix_uri: str,
    tmp_path: Path,
    call: Call,
    fault: Fault,
) -> None:
    direction, method = ("down", "GET") if call in READS else ("up", "PUT")
    prefix = f"{method} /storage-faults/"  # not a listing, which is a GET of the bucket
    faults.inject(replace(fault, direction=direction, request_prefix=prefix))
    call(prefix_uri, tmp_path)
    met = [request for request in faults.pop_requests() if request.endswith(f"!{fault.kind}")]
    assert len(met) == fault.times
    faults.clear()
    assert read_contents(prefix_uri) == EXPECTED_CONTENTS.get(
        call, {"small": SMALL, "large": LARGE}
    )


def test_received_bytes_are_not_requested_again(faults: FaultProxy, huge_uri: str) -> None:
    """A response that always breaks after 3 MB is complete after several requests."""
    faults.inject(
        Fault(
            "cut",
            times=None,
            request_prefix="GET",
            direction="down",
            after_bytes=3_000_000,
            after_headers=True,
        )
    )
    assert storage.read_bytes(huge_uri) == HUGE
    assert len(faults.pop_requests()) == len(HUGE) / 3_000_000


def test_versions_are_never_mixed_when_a_file_changes_during_a_read(
    faults: FaultProxy, huge_uri: str
) -> None:
    faults.inject(Fault("reset", request_prefix="GET", direction="down", after_bytes=6_000_000))
    chunks = storage.read_chunks(huge_uri)
    next(chunks)
    storage.write_bytes(huge_uri, HUGE[::-1])
    assert "changed while it was being read" in error_message(b"".join, chunks)


@pytest.mark.parametrize("after", [SMALL + SMALL, SMALL[:1000], b""], ids=len)
def test_a_file_that_changes_before_its_first_byte_is_read_anew(
    faults: FaultProxy, prefix_uri: str, monkeypatch: pytest.MonkeyPatch, after: bytes
) -> None:
    """The size announced in a response without a body does not bind the next response."""

    class Overwriting(retry.Backoff):
        def wait(self, error: TransientError) -> None:
            super().wait(error)
            s3.shared_client().put_object(Bucket="storage-faults", Key=f"{key}/small", Body=after)

    _, key = s3.bucket_and_key(prefix_uri)
    monkeypatch.setattr(s3, "Backoff", Overwriting)
    faults.inject(Fault("cut", request_prefix="GET", direction="down", after_headers=True))
    assert storage.read_bytes(f"{prefix_uri}/small") == after


# Permanent errors

PERMANENT_ERRORS = {
    "ExpiredToken": (400, "the session token is expired"),
    "InvalidToken": (400, "the session token is expired"),
    "RequestTimeTooSkewed": (403, "this machine's clock is wrong"),
    "AccessDenied": (403, "access denied; check AWS_ACCESS_KEY_ID"),
    "InvalidAccessKeyId": (403, "access denied; check AWS_ACCESS_KEY_ID"),
    "NoSuchBucket": (404, "bucket does not exist; create it or correct the name"),
    "InsufficientStorage": (507, "the store is full; free some space"),
    "KeyTooLongError": (400, "the name is too long"),
}


@pytest.mark.parametrize("code", PERMANENT_ERRORS)
def test_every_call_raises_permanent_errors_at_once(
    faults: FaultProxy, prefix_uri: str, tmp_path: Path, code: str
) -> None:
    status, words = PERMANENT_ERRORS[code]
    faults.inject(Fault("answer", times=None, status=status, code=code))
    for call in [*CALLS, lambda uri, _: storage.check_access(uri)]:
        said = error_message(call, prefix_uri, tmp_path)
        assert said.startswith(prefix_uri)
        assert words in said
        assert "\n" not in said
        assert len(faults.pop_requests()) == 1, "one request"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bucket(server: S3Server, faults: FaultProxy, tmp_path: Path) -> None:
    """It is not reported as empty, since a run would then start from scratch."""
    server.create_bucket("gone")
    storage.write_bytes("s3://gone/a/small", SMALL)
    storage.delete_folder("s3://gone/a")
    s3.shared_client().delete_bucket(Bucket="gone")
    for call in CALLS:
        assert "bucket does not exist" in error_message(call, "s3://gone/a", tmp_path)


def test_a_wrong_key(
    faults: FaultProxy, prefix_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for call in CALLS:
        said = error_message(call, prefix_uri, tmp_path)
        assert "access denied; check AWS_ACCESS_KEY_ID" in said
        assert SECRET not in said
        assert len(faults.pop_requests()) == 1


def test_a_name_that_is_too_long(prefix_uri: str, tmp_path: Path) -> None:
    assert "the name is too long" in error_message(
        storage.write_bytes, f"{prefix_uri}/{'n' * 1100}", b""
    )
    local = str(tmp_path / ("n" * 300))
    assert error_message(storage.write_bytes, local, b"") == f"{local}: File name too long"


@pytest.mark.parametrize("kind", ["refuse", "hang", "answer"])
def test_check_access_fails_soon(
    faults: FaultProxy, prefix_uri: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(s3, "CHECK_TIMEOUT_S", 2 * READ_TIMEOUT_S)
    monkeypatch.setenv(retry.TIMEOUT_VARIABLE, "1000")  # the usual retries would not end in time
    faults.inject(Fault(kind, times=None, seconds=1000))
    said = error_message(storage.check_access, prefix_uri)
    assert faults.endpoint in said or "SlowDown" in said
    assert "; gave up after " in said


def test_check_access_retries_in_a_worker(
    faults: FaultProxy, prefix_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "CHECK_TIMEOUT_S", 2 * READ_TIMEOUT_S)
    monkeypatch.setattr(files, "_retry_checks", False)
    storage.retry_access_checks()
    faults.inject(Fault("refuse", seconds=s3.CHECK_TIMEOUT_S))
    storage.check_access(prefix_uri)


@pytest.mark.parametrize("seconds", ["0", "1"])
def test_retries_end_at_the_timeout(
    faults: FaultProxy, prefix_uri: str, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    monkeypatch.setenv(retry.TIMEOUT_VARIABLE, seconds)
    faults.inject(Fault("answer", times=None))
    began = time.monotonic()
    said = error_message(storage.read_bytes, f"{prefix_uri}/small")
    assert time.monotonic() - began >= float(seconds)
    assert (len(faults.pop_requests()) == 1) == (seconds == "0")
    start = re.escape(f"{prefix_uri}/small: the store is unavailable (SlowDown: ")
    end = "set SEGAN_STORAGE_RETRY_TIMEOUT_S to wait longer"
    assert re.fullmatch(rf"{start}.*; gave up after \d+ s; {end}", said)


def test_an_outage_is_logged_once_at_its_beginning_and_end(
    faults: FaultProxy,
    prefix_uri: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The outage lasts until it has been logged."""
    monkeypatch.setattr(retry, "NOTICE_AFTER_S", 2 * READ_TIMEOUT_S)

    def messages() -> list[str]:
        return [record.getMessage() for record in caplog.records if "segan" in record.name]

    faults.inject(Fault("refuse", seconds=FOREVER_S))
    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(4) as threads:
        reading = threads.map(storage.read_bytes, [f"{prefix_uri}/small"] * 4)
        assert wait_for(lambda: bool(messages()), 30), "the outage was not logged"
        faults.clear()
        assert list(reading) == [SMALL] * 4
    begins, ends = messages()
    assert begins.startswith(f"{prefix_uri}/small: no valid response from {faults.endpoint} (")
    assert begins.endswith("; retrying for up to 40 s")
    assert ends.startswith("connection restored after ")


def test_a_short_outage_is_not_logged(
    faults: FaultProxy, prefix_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    faults.inject(Fault("answer", times=2))
    read(prefix_uri, Path())
    assert not [record for record in caplog.records if "segan" in record.name]


# Faults of the server itself


def test_a_suspended_server(server: S3Server, faults: FaultProxy, prefix_uri: str) -> None:
    """Each request waits READ_TIMEOUT_S; the server goes on before the retry timeout."""
    requests: list[str] = []

    def third_request() -> bool:
        requests.extend(faults.pop_requests())
        return len(requests) >= 3

    with ThreadPoolExecutor(1) as thread:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            writing = thread.submit(write, prefix_uri, Path())
            assert wait_for(third_request, 30), requests
            assert not writing.done()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        writing.result()
    assert read_contents(prefix_uri) == EXPECTED_CONTENTS[write]


def test_a_killed_and_restarted_server(tmp_path: Path, proxy: FaultProxy, server: S3Server) -> None:
    """All writes succeed, before and after; the proxy connects to the new ports."""
    contents = {f"{i:03d}": random.Random(i).randbytes(200_000) for i in range(60)}
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(s3_server(tmp_path))
        first.create_bucket("restarted")
        proxy.set_upstream(first.endpoint)
        stack.callback(proxy.set_upstream, server.endpoint)
        half_done = threading.Event()

        def write_all() -> None:
            for number, (name, content) in enumerate(contents.items()):
                storage.write_bytes(f"s3://restarted/{name}", content)
                assert storage.read_bytes(f"s3://restarted/{name}") == content
                if number == len(contents) // 2:
                    half_done.set()

        with ThreadPoolExecutor(1) as thread:
            writing = thread.submit(write_all)
            assert half_done.wait(60)
            os.kill(first.pid, signal.SIGKILL)
            second = stack.enter_context(s3_server(tmp_path))
            proxy.set_upstream(second.endpoint)
            writing.result()
        assert read_contents("s3://restarted") == contents


# Longer tasks with random faults

RANDOM_FAULTS = [
    Fault("answer", times=None, probability=0.08),
    Fault("reset", times=None, probability=0.05, after_bytes=1000),
    Fault("reset", times=None, probability=0.05, direction="down", after_bytes=5000),
    Fault("cut", times=None, probability=0.05, direction="down", after_bytes=700),
    Fault("reset", times=None, probability=0.05, direction="down"),
]

STEPS = st.tuples(
    st.sampled_from(["write", "write", "write", "delete", "read", "list", "clear"]),
    st.sampled_from(["a", "b", "deep/a", "deep/b", "deep/er/a"]),
    st.sampled_from([0, 1, 4000, 200_000]),
)


@given(steps=st.lists(STEPS, min_size=10, max_size=25), seed=st.integers(0, 2**32))
@settings(max_examples=8)
def test_with_random_faults_the_store_behaves_like_a_dictionary(
    proxy: FaultProxy, root: str, steps: list[tuple[str, str, int]], seed: int
) -> None:
    place, expected = f"{root}/{seed}", dict[str, bytes]()
    storage.delete_folder(place)
    proxy.inject(*RANDOM_FAULTS)
    try:
        for number, (step, name, size) in enumerate(steps):
            uri = f"{place}/{name}"
            if step == "write":
                expected[name] = random.Random(seed + number).randbytes(size)
                storage.write_bytes(uri, expected[name])
            elif step == "list":
                listed = {file.name: file.size for file in storage.list_files(place)}
                assert listed == {name: len(content) for name, content in expected.items()}
            elif step == "clear":
                storage.delete_folder(f"{place}/deep")
                expected = {n: c for n, c in expected.items() if not n.startswith("deep/")}
            elif name not in expected:
                call = storage.delete_file if step == "delete" else storage.read_bytes
                assert error_message(call, uri) == f"{uri}: not found"
            elif step == "delete":
                storage.delete_file(uri)
                del expected[name]
            else:
                assert storage.read_bytes(uri) == expected[name]
    finally:
        proxy.clear()
    assert read_contents(place) == expected


def test_ingest_and_reading_records_are_unaffected_by_faults(
    faults: FaultProxy, prefix_uri: str, tmp_path: Path
) -> None:
    sizes = {"train": 12, "validation": 4, "test": 2}

    def put(name: str, content: bytes) -> None:
        storage.write_bytes(f"{prefix_uri}/archive/{name}", content)

    generate_archive(sizes, 0, put, 64)
    archive = open_archive(f"{prefix_uri}/archive")
    expected = ingest(
        archive, f"{prefix_uri}/expected", IngestOptions(rows_per_shard=4), local_executor(2)
    )
    faults.inject(*RANDOM_FAULTS)
    manifest = ingest(
        archive, f"{prefix_uri}/faults", IngestOptions(rows_per_shard=4), local_executor(2)
    )
    assert manifest == expected
    frames = read_samples(f"{prefix_uri}/faults", manifest, "train")
    met = [request for request in faults.pop_requests() if "!" in request]
    assert len(met) > 10
    faults.clear()
    expected_frames = read_samples(f"{prefix_uri}/expected", expected, "train")
    assert frames.ids == expected_frames.ids
    assert frames.image.tobytes() == expected_frames.image.tobytes()


def test_download_from_bucket_to_bucket(faults: FaultProxy, huge_uri: str) -> None:
    """With faults at every step of a multipart upload."""
    source = S3File(huge_uri)
    faults.inject(
        Fault(
            "reset", request_prefix="POST", direction="down", times=2
        ),  # the upload is created, but the response is lost
        *[replace(fault, request_prefix="PUT") for fault in BODY_FAULTS.values()],
        Fault(
            "reset",
            request_prefix="GET /storage-faults/",
            direction="down",
            after_bytes=4_000_000,
            times=2,
        ),
        Fault("answer", request_prefix="GET /storage-faults?", times=2),
    )
    version = source.stat()
    with partial.resumable_writer(f"{huge_uri}-copy", version.tag) as (start, put):
        for chunk in iter_bytes(source, version, start):
            put(chunk)
        faults.inject(
            Fault("reset", request_prefix="POST", direction="down")
        )  # completed, but the response is lost
    faults.clear()
    assert read_contents(posixpath.dirname(huge_uri)) == {"huge": HUGE, "huge-copy": HUGE}


# Full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; skipped without permission to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mounting, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no `mount` command on this machine")
    if done.returncode:
        pytest.skip(f"cannot mount a disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, faults: FaultProxy, prefix_uri: str) -> None:
    there = str(small_disk / "there")
    storage.write_bytes(there, b"before")
    expected = f"{there}: No space left on device; free some space and run the command again"
    assert error_message(storage.write_bytes, there, LARGE) == expected
    digest = storage.sha256(LARGE)
    assert error_message(storage.download, f"{prefix_uri}/large", there, digest) == expected
    assert len(faults.pop_requests()) == 1, "one request: retries do not help"
    assert [path.name for path in small_disk.iterdir()] == ["there"]
    assert storage.read_bytes(there) == b"before"
