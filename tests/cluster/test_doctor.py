"""The doctor's checks of a real cluster: with its token, without it, and of one without tokens."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from infra.local import cluster as infra
from infra.local.cluster import RayCluster, ray_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """This process connects to no cluster."""


def run_doctor(**changes: str | None) -> tuple[int, dict[str, str], str]:
    """The exit code, the cluster's checks by name as "status | message | advice", and stderr."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_A")}
    environment = kept | {k: v for k, v in changes.items() if v is not None}
    command = [sys.executable, "-m", "segan", "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines: dict[str, str] = {}
    for row in json.loads(done.stdout):
        area, _, name = row.pop("check").partition(": ")
        if area == "cluster":
            lines[name] = " | ".join(row.values()).rstrip(" |")
    return done.returncode, lines, done.stderr


def check_statuses(lines: dict[str, str]) -> dict[str, str]:
    return {name: line.partition(" | ")[0] for name, line in lines.items()}


def cluster_environment(cluster: RayCluster, **changes: str | None) -> dict[str, Any]:
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    return {name: cluster.environment[name] for name in names} | changes


def test_a_healthy_cluster(ray_session: RayCluster) -> None:
    _, lines, err = run_doctor(**cluster_environment(ray_session))
    assert set(check_statuses(lines).values()) == {"ok"}, lines
    assert lines["address"] == f"ok | {ray_session.address} accepts connections"
    assert lines["token"] == "ok | accepted"
    assert lines["anonymous access"] == "ok | rejected"
    words = f"Ray {version('ray')}, Python {platform.python_version()}"
    assert lines["versions"] == f"ok | {words}, the same as here"
    assert lines["State API"] == "ok | 1 node, 4 CPUs, 0 GPUs"
    assert ray_session.token_path.read_text() not in json.dumps(lines) + err


def test_the_dashboard_is_found_by_the_address(ray_session: RayCluster) -> None:
    _, lines, _ = run_doctor(**cluster_environment(ray_session, RAY_API_SERVER_ADDRESS=None))
    assert set(check_statuses(lines).values()) == {"ok"}, lines
    assert lines["dashboard"] == f"ok | {ray_session.dashboard}"


def test_only_the_dashboard_is_reachable(ray_session: RayCluster) -> None:
    _, lines, _ = run_doctor(**cluster_environment(ray_session, RAY_ADDRESS=None))
    assert check_statuses(lines) == {
        "address": "skipped",
        **dict.fromkeys(["dashboard", "token", "anonymous access", "versions", "State API"], "ok"),
    }


@pytest.mark.parametrize("content", ["0" * 64, None])
def test_without_the_token(ray_session: RayCluster, tmp_path: Path, content: str | None) -> None:
    token = tmp_path / "token"
    if content:
        token.write_text(content)
    path = {"RAY_AUTH_TOKEN_PATH": str(token)} if content else {"RAY_AUTH_TOKEN_PATH": None}
    code, lines, err = run_doctor(**cluster_environment(ray_session, HOME=str(tmp_path), **path))
    assert code == 1
    assert "cluster: token" in err.splitlines()[-1]
    assert lines["token"].startswith("failed | ")
    assert check_statuses(lines) == {
        "address": "ok",
        "dashboard": "ok",
        "token": "failed",
        "anonymous access": "ok",
        "versions": "skipped",
        "State API": "skipped",
    }


def test_without_the_token_the_dashboard_is_not_found_by_the_address(
    ray_session: RayCluster, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("0" * 64)
    changes = {"RAY_API_SERVER_ADDRESS": None, "RAY_AUTH_TOKEN_PATH": str(token)}
    code, lines, _ = run_doctor(**cluster_environment(ray_session, **changes))
    assert code == 1
    assert lines["dashboard"].startswith(f"failed | {ray_session.address}: dashboard not found: ")
    assert "RAY_AUTH_TOKEN_PATH" in lines["dashboard"]
    assert "0" * 64 not in json.dumps(lines)
    assert set(check_statuses(lines).values()) == {"ok", "failed", "skipped"}


def test_ports_that_nothing_listens_on(ray_session: RayCluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        closed = f"127.0.0.1:{reserved.getsockname()[1]}"
    code, lines, _ = run_doctor(
        **cluster_environment(
            ray_session, RAY_ADDRESS=closed, RAY_API_SERVER_ADDRESS=f"http://{closed}"
        )
    )
    assert code == 1
    assert re.match(
        rf"failed \| {closed}: .*Connection refused \| check that the cluster runs",
        lines["address"],
    )
    assert "Connection refused" in lines["dashboard"]
    rest = {
        status
        for name, status in check_statuses(lines).items()
        if name not in ("address", "dashboard")
    }
    assert rest == {"skipped"}


def test_a_cluster_without_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = infra._shared_environment

    def open_to_all(token_path: Path, ip: str) -> dict[str, str]:
        return shared(token_path, ip) | {"RAY_AUTH_MODE": "disabled"}

    monkeypatch.setattr(infra, "_shared_environment", open_to_all)
    with ray_cluster(tmp_path, 1, {}) as cluster:
        _, lines, _ = run_doctor(**cluster_environment(cluster))
    assert check_statuses(lines) == {
        **dict.fromkeys(["address", "dashboard", "token", "versions", "State API"], "ok"),
        "anonymous access": "warning",
    }
    assert lines["token"] == "ok | not required, and none configured"
    assert lines["anonymous access"].startswith(
        "warning | accepted: everybody who can reach the cluster "
    )
