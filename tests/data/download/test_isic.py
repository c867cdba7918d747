"""Downloads give complete files through all kinds of faults of a real HTTP server."""

import contextlib
import hashlib
import http.server
import io
import json
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segan import storage
from segan.cli.main import main
from segan.data.download import partial, remote
from segan.data.download.isic import DATASETS, DownloadResult, download_files
from segan.errors import StorageError
from segan.storage import retry, s3

FILES = DATASETS["isic2016"].files
FILE = FILES[0]
MIB = 2**20


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path, with the faults that its attributes describe."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.if_range = True
        self.size: int | None = None  # announced instead of the true size
        self.send_etag = True  # the hash of the content
        # For each GET in turn: "drop" or "stall" after this many bytes.
        self.interruptions: list[tuple[str, int]] = []
        self.redirects: dict[str, str] = {}
        self.statuses: list[int] = []  # sent instead of the files, one for each request
        self.headers: dict[str, str] = {}
        self.on_get: Callable[[], object] = lambda: None
        self.gets: list[str | None] = []  # the Range header of each GET
        self.bytes_sent = 0
        self.stopped = threading.Event()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/mirror"

    def put(self, name: str, body: bytes) -> bytes:
        self.files[f"/mirror/{name}"] = body
        return body

    def handle_error(self, *_: Any) -> None:
        """Ignores clients that were killed."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.respond(send=False)

    def do_GET(self) -> None:
        self.server.gets.append(self.headers.get("Range"))
        self.server.on_get()
        self.respond(send=True)

    def respond(self, send: bool) -> None:
        server = self.server
        if self.path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[self.path])
            self.end_headers()
            return
        body = server.files.get(self.path)
        if server.statuses or body is None:
            self.send_response(server.statuses.pop(0) if server.statuses else 404)
            self.end_headers()
            return
        name = f'"{hashlib.md5(body).hexdigest()}"'
        asked = self.headers.get("Range")
        same = not server.if_range or self.headers.get("If-Range", name) == name
        start = int(asked.removeprefix("bytes=")[:-1]) if server.ranges and asked and same else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if server.send_etag:
            self.send_header("ETag", name)
        self.send_header("Content-Length", str((server.size or len(body)) - start))
        for header in server.headers.items():
            self.send_header(*header)
        self.end_headers()
        if send:
            self.send_body(body[start:])

    def send_body(self, body: bytes) -> None:
        how, size = (
            self.server.interruptions.pop(0) if self.server.interruptions else ("", len(body))
        )
        self.wfile.write(body[:size])
        self.server.bytes_sent += min(size, len(body))
        if how == "stall":
            self.server.stopped.wait(60)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.stopped.set()
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "INITIAL_BACKOFF_S", 0.001)
    monkeypatch.setattr(remote, "READ_TIMEOUT_S", 2)
    monkeypatch.setattr(remote, "STAT_TIMEOUT_S", 0.3)


@pytest.fixture
def short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that makes no progress for 0.3 s fails."""
    monkeypatch.setenv(retry.TIMEOUT_VARIABLE, "0.3")


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.integration)])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "place")
    return storage.join(request.getfixturevalue("bucket"), "place")


@contextlib.contextmanager
def no_progress(*_: object) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


def fetch(base: str, out: str, *files: str) -> list[DownloadResult]:
    return list(download_files(files or (FILE,), base, out, no_progress))


def error_message(base: str, place: str, *files: str) -> str:
    with pytest.raises(StorageError) as caught:
        fetch(base, place, *files)
    return str(caught.value)


def list_names(place: str) -> list[str]:
    return [file.name for file in storage.list_files(place)]


def read_only_file(place: str) -> bytes:
    """Returns the content of FILE, which must be the only file."""
    assert list_names(place) == [FILE]
    return storage.read_bytes(storage.join(place, FILE))


# Complete, and downloaded once


@pytest.mark.parametrize("size", [1, 3 * MIB, partial.PART_SIZE, 2 * partial.PART_SIZE + 5])
def test_a_file_is_downloaded_unchanged(server: Server, destination: str, size: int) -> None:
    body = server.put(FILE, content(size))
    uri = storage.join(destination, FILE)
    assert fetch(server.base, destination) == [DownloadResult(FILE, uri, size, False, 0)]
    assert read_only_file(destination) == body
    assert fetch(server.base, destination) == [DownloadResult(FILE, uri, size, True, 0)]
    assert server.gets == [None]


def test_a_file_of_another_size_is_downloaded_again(server: Server, destination: str) -> None:
    body = server.put(FILE, content(1000))
    storage.write_bytes(storage.join(destination, FILE), body[:-1])
    assert not fetch(server.base, destination)[0].skipped
    assert read_only_file(destination) == body


@pytest.mark.integration
@pytest.mark.parametrize("size", [5, 2 * partial.PART_SIZE + 5])
def test_a_bucket_serves_as_a_mirror(destination: str, bucket: str, size: int) -> None:
    base = storage.join(bucket, "mirror")
    storage.write_bytes(storage.join(base, FILE), content(size))
    assert not fetch(base, destination)[0].skipped
    assert read_only_file(destination) == content(size)
    assert (
        error_message(base, destination, FILES[1])
        == f"{base}/{FILES[1]}: not found; check --mirror"
    )


# Broken connections


@pytest.mark.parametrize("how", ["drop", "stall"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_resumed(
    server: Server, destination: str, how: str, ranges: bool
) -> None:
    body = server.put(FILE, content(3 * MIB))
    server.ranges, server.interruptions = ranges, [(how, MIB), (how, MIB + 7)]
    fetch(server.base, destination)
    assert read_only_file(destination) == body
    second = MIB + MIB + 7 if ranges else MIB + 7  # without ranges every response starts at 0
    assert server.gets == [None, f"bytes={MIB}-", f"bytes={second}-"]


def test_server_errors_are_retried(server: Server, destination: str) -> None:
    body = server.put(FILE, content(1000))
    server.statuses = [503, 429, 500]
    fetch(server.base, destination)
    assert read_only_file(destination) == body


@pytest.mark.usefixtures("short_retries")
def test_a_server_that_always_closes_the_connection_is_given_up(
    server: Server, destination: str
) -> None:
    server.put(FILE, content(1000))
    server.interruptions = [("drop", 400), *[("drop", 0)] * 30]
    said = error_message(server.base, destination)
    assert said.startswith(
        f"{server.base}/{FILE}: the connection was closed after 400 of 1000 bytes; gave up after "
    )
    assert said.endswith(f" s; {remote.RESUME_ADVICE}")
    assert len(server.gets) > 5
    assert FILE not in list_names(destination)


@pytest.mark.usefixtures("short_retries")
def test_a_second_command_downloads_the_remaining_bytes_only(
    server: Server, destination: str
) -> None:
    body = server.put(FILE, content(3 * partial.PART_SIZE))
    server.interruptions = [("drop", 2 * partial.PART_SIZE + 9), *[("drop", 0)] * 30]
    error_message(server.base, destination)
    server.interruptions, server.gets, server.bytes_sent = [], [], 0
    kept = partial.PART_SIZE * 2 + (
        0 if storage.is_s3(destination) else 9
    )  # a bucket keeps complete parts only
    assert fetch(server.base, destination)[0].resumed_bytes == kept
    assert (server.gets, server.bytes_sent) == ([f"bytes={kept}-"], len(body) - kept)
    assert read_only_file(destination) == body


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("size", [500, 1000, 1500])
def test_two_versions_are_never_joined(
    server: Server, destination: str, ranges: bool, size: int
) -> None:
    """The file changes while its connection is broken, and again between two commands."""
    server.put(FILE, content(1000))
    server.ranges, server.interruptions = (
        ranges,
        [("drop", 400), ("drop", 300), *[("drop", 0)] * 30],
    )
    changes: Iterator[Callable[[], object]] = iter(
        [lambda: None, lambda: server.put(FILE, content(size, 1))]
    )
    server.on_get = lambda: next(changes, lambda: None)()
    error_message(server.base, destination)
    server.interruptions = []
    body = server.put(FILE, content(size, 2))
    assert fetch(server.base, destination)[0].resumed_bytes == 0
    assert read_only_file(destination) == body


def test_versions_are_not_joined_without_if_range(server: Server, destination: str) -> None:
    server.put(FILE, content(1000))
    server.if_range, server.interruptions = False, [("drop", 400)]
    changes: Iterator[Callable[[], object]] = iter(
        [lambda: None, lambda: server.put(FILE, content(1000, 1))]
    )
    server.on_get = lambda: next(changes, lambda: None)()
    fetch(server.base, destination)
    assert read_only_file(destination) == content(1000, 1)
    assert server.gets == [None, "bytes=400-", None]


def test_a_file_without_validator_starts_again(server: Server, destination: str) -> None:
    body = server.put(FILE, content(1000))
    server.send_etag, server.interruptions = False, [("drop", 400)]
    fetch(server.base, destination)
    assert read_only_file(destination) == body
    assert server.gets == [None, None]


def test_a_file_that_keeps_changing_is_given_up(server: Server, destination: str) -> None:
    server.put(FILE, content(1000))
    numbers = iter(range(100))
    server.interruptions = [("drop", 400)] * 100
    server.on_get = lambda: server.put(FILE, content(1000, next(numbers))) and None
    assert "changed during each of 3 downloads" in error_message(server.base, destination)


@pytest.mark.usefixtures("short_retries")
@pytest.mark.integration
def test_a_part_is_sent_once(server: Server, bucket: str) -> None:
    sent: list[int] = []
    events = s3.shared_client().meta.events
    body = server.put(FILE, content(4 * partial.PART_SIZE + 1))
    server.interruptions = [("drop", 2 * partial.PART_SIZE), *[("drop", 0)] * 30]
    events.register(
        "provide-client-params.s3.UploadPart",
        lambda params, **_: sent.append(params["PartNumber"]),
        unique_id="sent",
    )
    try:
        error_message(server.base, bucket)
        server.interruptions = []
        fetch(server.base, bucket)
    finally:
        events.unregister("provide-client-params.s3.UploadPart", unique_id="sent")
    assert sent == [1, 2, 3, 4, 5]
    assert read_only_file(bucket) == body


@pytest.mark.usefixtures("short_retries")
@pytest.mark.integration
def test_an_aborted_upload_starts_again(server: Server, bucket: str) -> None:
    body = server.put(FILE, content(2 * partial.PART_SIZE))
    server.interruptions = [("drop", partial.PART_SIZE), *[("drop", 0)] * 30]
    error_message(server.base, bucket)
    server.interruptions = []
    state = storage.read_json(f"{bucket}/{FILE}.partial")
    s3.create_client().abort_multipart_upload(
        Bucket=bucket.removeprefix("s3://"), Key=FILE, UploadId=state["upload_id"]
    )
    assert fetch(server.base, bucket)[0].resumed_bytes == 0
    assert read_only_file(bucket) == body


@pytest.mark.integration
def test_an_upload_aborted_meanwhile_is_reported(bucket: str) -> None:
    uri = storage.join(bucket, FILE)

    def lose_it() -> None:
        with partial.resumable_writer(uri, "tag") as (_, write):
            write(b"x")
            partial.discard(uri)

    with pytest.raises(StorageError, match="perhaps by another download"):
        lose_it()


# Errors


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (403, "access denied (HTTP 403); check the address or choose a --mirror"),
        (404, "not found (HTTP 404); check the address or choose a --mirror"),
        (401, "the server requires a password"),
        (410, "the server rejected the request (HTTP 410); check the address"),
    ],
)
def test_a_client_error_is_reported_at_once(
    server: Server, tmp_path: Path, status: int, said: str
) -> None:
    server.statuses = [status]
    assert error_message(server.base, str(tmp_path / "new")).startswith(
        f"{server.base}/{FILE}: {said}"
    )
    assert not (tmp_path / "new").exists()


def test_a_server_with_errors_only_is_given_up(server: Server, tmp_path: Path) -> None:
    server.statuses = [503] * 100
    assert "server error (HTTP 503); gave up after " in error_message(server.base, str(tmp_path))


def test_a_missing_file_is_reported_before_any_download(server: Server, tmp_path: Path) -> None:
    server.put(FILE, b"x")
    assert f"{FILES[1]}: not found" in error_message(server.base, str(tmp_path), *FILES)
    assert server.gets == []


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        ({"Content-Type": "text/html"}, b"log in", "expected a zip, found a web page"),
        ({}, b"", "expected a zip, found an empty file"),
    ],
)
def test_a_file_that_is_not_a_zip_is_reported(
    server: Server, tmp_path: Path, headers: dict[str, str], body: bytes, said: str
) -> None:
    server.headers = headers
    server.put(FILE, body)
    assert said in error_message(server.base, str(tmp_path))


def test_a_redirect_to_http_is_followed(server: Server, tmp_path: Path) -> None:
    body = server.put("elsewhere", content(1000))
    server.redirects = {f"/mirror/{FILE}": "/mirror/elsewhere"}
    server.interruptions = [("drop", 400)]
    fetch(server.base, str(tmp_path))
    assert read_only_file(str(tmp_path)) == body
    assert server.gets[-1] == "bytes=400-"


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"])
def test_a_redirect_to_another_scheme_is_refused(
    server: Server, tmp_path: Path, target: str
) -> None:
    server.redirects = {f"/mirror/{FILE}": target}
    assert f"redirects to {target}, expected http or https" in error_message(
        server.base, str(tmp_path)
    )


def test_the_proxy_of_the_environment_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = "http://nowhere.invalid/mirror"
    server.files[f"{base}/{FILE}"] = content(1000)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "elsewhere.invalid")
    fetch(base, str(tmp_path))
    assert read_only_file(str(tmp_path)) == content(1000)
    monkeypatch.setenv("no_proxy", "nowhere.invalid")
    assert "; gave up after " in error_message(base, str(tmp_path / "other"))


def test_a_closed_port_is_reported(server: Server, tmp_path: Path) -> None:
    base = server.base
    server.server_close()
    assert "Connection refused; gave up after " in error_message(base, str(tmp_path))


def test_a_full_disk_is_reported_before_any_download(server: Server, tmp_path: Path) -> None:
    server.put(FILE, b"x")
    server.size = 10**18
    said = error_message(server.base, str(tmp_path))
    assert said.startswith(f"{tmp_path}: expected {10**18} bytes of free space, found ")
    assert said.endswith("; free some space or choose another --out")
    assert (server.gets, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_file_instead_of_the_folder_is_reported(
    server: Server, tmp_path: Path, where: str
) -> None:
    server.put(FILE, b"x")
    (tmp_path / "file").write_bytes(b"")
    said = error_message(server.base, str(tmp_path / where))
    assert said.endswith("; check the path")


def test_a_folder_instead_of_a_file_is_reported(server: Server, tmp_path: Path) -> None:
    server.put(FILE, b"x")
    (tmp_path / FILE).mkdir()
    assert (
        f"{tmp_path}/{FILE}: expected a file, found a folder; choose another --out"
        in error_message(server.base, str(tmp_path))
    )
    assert server.gets == []


def test_missing_permission_to_write_is_reported(server: Server) -> None:
    server.put(FILE, b"x")
    assert "; check the permissions" in error_message(server.base, "/sys/new")


def test_two_commands_do_not_write_one_file(tmp_path: Path) -> None:
    uri = str(tmp_path / FILE)
    with partial.resumable_writer(uri, "tag") as (_, write):
        write(b"x")
        with (
            pytest.raises(StorageError, match="another command is downloading this file"),
            partial.resumable_writer(uri, "tag"),
        ):
            pass
    assert (tmp_path / FILE).read_bytes() == b"x"


@pytest.mark.parametrize(
    "base",
    [
        "mirror",
        "/mirror",
        "ftp://host/x",
        "file:///x",
        "http://",
        "http:///x",
        "http://host:port/x",
        "http://a..b/x",
        "http://host/a b",
        "http://host/ü",
        "http://host/x?key=1",
        "https://host/x#y",
        "s3://",
    ],
)
def test_an_invalid_mirror_is_a_usage_error(base: str, tmp_path: Path) -> None:
    done = run_cli("download", "isic2016", "--out", str(tmp_path), "--mirror", base)
    assert done[0] == 2
    assert base in done[2]


def test_a_password_in_the_mirror_is_not_shown(tmp_path: Path) -> None:
    for base in ("https://me:secret@host/x", "http://me:secret@host:p", "s3://me:secret@host/x"):
        code, _, err = run_cli("download", "isic2016", "--out", str(tmp_path), "--mirror", base)
        assert code == 2
        assert "secret" not in err


# The command


def run_cli(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("name", DATASETS)
def test_the_command_downloads_a_dataset(server: Server, tmp_path: Path, name: str) -> None:
    bodies = {
        file: server.put(file, content(1000, i)) for i, file in enumerate(DATASETS[name].files)
    }
    words = ["download", name, "--out", str(tmp_path), "--mirror", server.base + "/", "--json"]
    code, out, err = run_cli(*words)
    assert code == 0
    assert json.loads(out) == [
        {
            "file": file,
            "uri": f"{tmp_path}/{file}",
            "bytes": 1000,
            "skipped": False,
            "resumed_bytes": 0,
        }
        for file in bodies
    ]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == bodies
    assert f"{next(iter(bodies))} 1.0 kB of 1.0 kB, " in err
    assert [one["skipped"] for one in json.loads(run_cli(*words)[1])] == [True] * len(bodies)


def test_an_unknown_dataset_is_a_usage_error(tmp_path: Path) -> None:
    code, _, err = run_cli("download", "isic2019", "--out", str(tmp_path))
    assert (code, err) == (
        2,
        "segan: isic2019: unknown dataset; expected one of isic2016, isic2017, isic2018\n",
    )


def test_a_download_stopped_by_a_full_disk_is_resumed(server: Server, tmp_path: Path) -> None:
    bodies = {file: server.put(file, content(MIB, i)) for i, file in enumerate(FILES)}

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))

    first = start_fetch(server, str(tmp_path), preexec_fn=limit_file_size)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "free some space and run the command again" in err
    assert fetch(server.base, str(tmp_path), *FILES)[0].resumed_bytes == 600_000
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == bodies


def start_fetch(server: Server, place: str, **options: Any) -> subprocess.Popen[str]:
    words = ["download", "isic2016", "--out", place, "--mirror", server.base, "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "segan", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_command_killed_repeatedly_ends_with_complete_files(
    server: Server, destination: str
) -> None:
    part = partial.PART_SIZE
    bodies = {file: server.put(file, content(1000, i)) for i, file in enumerate(FILES)}
    bodies[FILE] = server.put(FILE, content(4 * part + 1))
    for stalls_after, parts in ((part + 1, 1), (2 * part + 2, 3), (5, 3)):
        server.interruptions, wanted = [("stall", stalls_after)], server.bytes_sent + stalls_after
        running = start_fetch(server, destination)
        while server.bytes_sent < wanted or stored_bytes(destination) < parts * part:
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=60)
    last = start_fetch(server, destination)
    out, err = last.communicate(timeout=60)
    assert last.returncode == 0, err
    assert json.loads(out)[0]["resumed_bytes"] >= 3 * part
    assert list_names(destination) == sorted(FILES)
    for file, body in bodies.items():
        assert storage.read_bytes(storage.join(destination, file)) == body


def stored_bytes(place: str) -> int:
    """Returns how many bytes of the first file are stored."""
    if not storage.is_s3(place):
        return sum(file.size for file in storage.list_files(place))
    if not storage.exists(storage.join(place, f"{FILE}.partial")):
        return 0
    state = storage.read_json(storage.join(place, f"{FILE}.partial"))
    bucket, key = s3.bucket_and_key(storage.join(place, FILE))
    listed = s3.create_client().list_parts(Bucket=bucket, Key=key, UploadId=state["upload_id"])
    return sum(part["Size"] for part in listed.get("Parts", []))
