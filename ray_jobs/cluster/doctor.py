"""The Ray cluster that jobs would go to, asked from outside: nothing is joined, nothing started.

By its dashboard, as `ray job submit` does it, and by the port that a driver joins at.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from segan.doctor.checks import Check, Outcome, failed, ok, skipped, warning

TIMEOUT_S = 5.0
RAY_SCRIPT_TIMEOUT_S = 25.0  # Ray is imported, and asks for as long as 10 s
DASHBOARD_UNREACHABLE = "not tried, because the dashboard does not answer"
START_HINT = "is the cluster up, and the address right? make cluster starts one on this machine"
FIND_DASHBOARD_SCRIPT = """
from ray.dashboard.utils import get_address_for_submission_client
print(get_address_for_submission_client(None))
"""
AUTH_HEADERS_SCRIPT = """
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
import json
print(json.dumps(get_auth_headers_if_auth_enabled({})))
"""


def cluster_checks() -> list[Check]:
    """Those of the cluster that the environment or Ray's own note on this machine names."""
    probe = ClusterProbe()
    if not (probe.address or probe.dashboard):
        nothing = skipped("RAY_ADDRESS is not set and no Ray runs here: segan starts its own")
        return [Check("cluster", lambda: nothing)]
    return [
        Check("cluster: address", probe.check_address),
        Check(
            "cluster: dashboard",
            probe.check_dashboard,
            timeout_s=RAY_SCRIPT_TIMEOUT_S + 2 * TIMEOUT_S,
        ),
        Check("cluster: token", probe.check_token, timeout_s=RAY_SCRIPT_TIMEOUT_S),
        Check("cluster: anonymous access", probe.check_anonymous_access),
        Check("cluster: versions", probe.check_versions),
        Check("cluster: State API", probe.check_nodes),
    ]


class ClusterProbe:
    """Where it is, and what has been found out about it.

    Attributes:
        address: host:port of its GCS, which drivers join at; empty where only the dashboard's
            is known.
        dashboard: its URL; empty until it is found.
    """

    def __init__(self) -> None:
        configured = os.environ.get("RAY_ADDRESS", "")
        self.dashboard = os.environ.get("RAY_API_SERVER_ADDRESS", "")
        if configured.startswith(("http://", "https://")):
            self.dashboard, configured = self.dashboard or configured, ""
        self.recorded_address = "" if configured and configured != "auto" else _recorded_address()
        self.address = self.recorded_address or ("" if configured == "auto" else configured)
        self.is_reachable = False
        self.headers: dict[str, str] = {}

    def check_address(self) -> Outcome:
        if not self.address:
            return skipped("RAY_ADDRESS is not set; jobs can be submitted, not joined from here")
        url = urlsplit(self.address if "://" in self.address else f"gcs://{self.address}")
        try:
            with socket.create_connection((url.hostname or "", url.port or 0), TIMEOUT_S):
                pass
        except (OSError, ValueError) as error:
            if self.recorded_address:
                start = "Ray ran here and ended; rm its ray_current_cluster, or ray start anew"
                return failed(f"{self.address}: {error}", start)
            return failed(f"{self.address}: {error}", START_HINT)
        return ok(f"{self.address} listens")

    def check_dashboard(self) -> Outcome:
        if not self.dashboard:
            # In a process of its own: Ray's client ends its process when it is not answered.
            try:
                self.dashboard = _run_ray_script(FIND_DASHBOARD_SCRIPT)
            except _NoAnswerError as error:
                return failed(
                    f"{self.address} does not say where it is: {error}",
                    "give the cluster's token: RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH its file",
                )
        status, body = self._get("/api/gcs_healthz", {})  # which asks for no token
        if status != 200:
            return failed(f"{self.dashboard}: {status or body}", f"{START_HINT}; or a port forward")
        self.is_reachable = True
        return ok(self.dashboard)

    def check_token(self) -> Outcome:
        if not self.is_reachable:
            return skipped(DASHBOARD_UNREACHABLE)
        self.headers = json.loads(_run_ray_script(AUTH_HEADERS_SCRIPT))
        status, body = self._get("/api/version", self.headers)
        if status == 200:
            return ok("accepted" if self.headers else "none given, none asked for")
        if status in (401, 403):
            had = "refused" if self.headers else "none found, and one is asked for"
            return failed(
                had, "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH the file with the cluster's"
            )
        return failed(f"{status}: {body}", START_HINT)

    def check_anonymous_access(self) -> Outcome:
        if not self.is_reachable:
            return skipped(DASHBOARD_UNREACHABLE)
        status, _ = self._get("/api/version", {})
        if status in (401, 403):
            return ok("refused")
        return warning(
            "taken: whoever reaches the cluster can run what they like on it",
            "start it with RAY_AUTH_MODE=token",
        )

    def check_versions(self) -> Outcome:
        """Ray's and Python's there and here, which a driver that joins must share."""
        found = self._get_data("/api/v0/cluster_metadata")
        if found is None:
            return skipped(DASHBOARD_UNREACHABLE)
        there = (str(found["rayVersion"]), str(found["pythonVersion"]))
        here = (version("ray"), platform.python_version())
        words = "Ray {}, Python {}".format(*there)
        if there == here:
            return ok(f"{words}, as here")
        words += "; here Ray {}, Python {}".format(*here)
        if there[0] == here[0] and not self.address:
            return warning(words, "ray job submit works; to join from here both must be the same")
        return failed(words, "use the cluster's image or its versions here, or submit by job")

    def check_nodes(self) -> Outcome:
        found = self._get_data("/api/v0/nodes?detail=true&limit=1000")
        if found is None:
            return skipped(DASHBOARD_UNREACHABLE)
        nodes = [node for node in found["result"]["result"] if node["state"] == "ALIVE"]
        sums = {
            kind: sum(node["resources_total"].get(kind, 0) for node in nodes)
            for kind in ("CPU", "GPU")
        }
        words = f"answers: {len(nodes)} nodes, {sums['CPU']:g} CPUs, {sums['GPU']:g} GPUs"
        if not nodes:
            return failed(words, START_HINT)
        return ok(words)

    def _get_data(self, path: str) -> dict[str, Any] | None:
        """The data of an answer; None where nothing answers or the token is not taken."""
        if not self.is_reachable:
            return None
        status, body = self._get(path, self.headers)
        if status in (401, 403):
            return None
        data: dict[str, Any] = json.loads(body)["data"]
        return data

    def _get(self, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and body; status 0 where there is no answer, with the reason."""
        request = urllib.request.Request(f"{self.dashboard.rstrip('/')}{path}", headers=headers)  # noqa: S310
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=TIMEOUT_S) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except (OSError, ValueError) as error:
            return 0, str(error)


def _recorded_address() -> str:
    """The address of the Ray that was last started on this machine, as Ray notes it."""
    from ray._private.utils import read_ray_address

    return read_ray_address() or ""


class _NoAnswerError(Exception):
    """Ray did not answer a question; the message is what it said instead."""


def _run_ray_script(script: str) -> str:
    """The last line that a Python program of Ray's prints."""
    command = [sys.executable, "-c", script]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=RAY_SCRIPT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise _NoAnswerError(f"no answer in {RAY_SCRIPT_TIMEOUT_S:g} s") from None
    lines = done.stdout.split("\n")
    if done.returncode or not done.stdout.strip():
        error_lines = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        # What was raised, in its first sentence, rather than where to read about it.
        raised = [line for line in error_lines if "Error: " in line]
        raise _NoAnswerError((raised or error_lines)[-1].partition(". ")[0])
    return [line for line in lines if line.strip()][-1]
