"""A wrong RAY_ADDRESS is one line that names it, from every command that joins a cluster."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ray_jobs.cluster.address import check_ray_address
from segan.cli.main import main
from segan.errors import UsageError


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def dashboard() -> Iterator[str]:
    """The address of a server that speaks HTTP, as Ray's dashboard does."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("http://127.0.0.1:8265", "a dashboard, to which `ray job submit --address` sends jobs"),
        ("ray://127.0.0.1", "expected HOST:PORT"),
        ("redis://127.0.0.1:6379", "expected HOST:PORT"),
        ("nonsense", "expected HOST:PORT"),
        ("127.0.0.1", "expected HOST:PORT"),
        ("127.0.0.1:", "expected HOST:PORT"),
        ("127.0.0.1:many", "expected HOST:PORT"),
        ("127.0.0.1:6379/ray", "expected HOST:PORT"),
        ("127.0.0.1:99999", "expected HOST:PORT"),
        ("no-such-host.invalid:6379", "; expected HOST:PORT"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(address: str, found: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_ray_address(address)
    assert str(caught.value).startswith(f"RAY_ADDRESS={address}: ")
    assert found in str(caught.value)
    assert "HOST:PORT of the head of a Ray cluster" in str(caught.value)


def test_nothing_or_another_server_at_the_address_is_named(
    unused_port: int, dashboard: str
) -> None:
    with pytest.raises(UsageError, match=f"^RAY_ADDRESS=127.0.0.1:{unused_port}: .*refused; exp"):
        check_ray_address(f"127.0.0.1:{unused_port}")
    with pytest.raises(UsageError, match=f"^RAY_ADDRESS={dashboard}: .* is not the head of a Ray"):
        check_ray_address(dashboard)


@pytest.mark.parametrize("address", ["", "local"])
def test_a_ray_of_this_process_needs_no_server(address: str) -> None:
    check_ray_address(address)


def test_a_command_ends_with_one_line(
    unused_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused_port}")
    err = io.StringIO()
    assert _run(["synth", str(tmp_path / "a"), "--train", "2", "--short-side", "64"], err) == 0
    err = io.StringIO()
    code = _run(["ingest", str(tmp_path / "a"), str(tmp_path / "records")], err)
    assert code == 2
    (line,) = [line for line in err.getvalue().splitlines() if line.startswith("segan: ")]
    assert line.startswith(f"segan: RAY_ADDRESS=127.0.0.1:{unused_port}: ")
    assert "Traceback" not in err.getvalue()


def _run(words: list[str], err: io.StringIO) -> int:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        return main(words)


def test_auto_without_a_cluster_of_this_machine_is_one_line(tmp_path: Path) -> None:
    program = "from ray_jobs.cluster.connect import connect; connect()"
    environment = os.environ | {"RAY_ADDRESS": "auto", "RAY_TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    last = done.stderr.splitlines()[-1]
    assert "UsageError: RAY_ADDRESS=auto: no Ray cluster has been started on this machine" in last
