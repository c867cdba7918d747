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

from segan.doctor.checks import Check, Outcome, fails, ok, skipped, warning

TIMEOUT = 5.0
FIND_SECONDS = 25.0  # Ray is imported, and asks for as long as 10 s
NOT_TRIED = "not tried, because the dashboard does not answer"
START = "is the cluster up, and the address right? make cluster starts one on this machine"
FIND = """
from ray.dashboard.utils import get_address_for_submission_client
print(get_address_for_submission_client(None))
"""
HEADERS = """
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
import json
print(json.dumps(get_auth_headers_if_auth_enabled({})))
"""


def cluster_checks() -> list[Check]:
    """Those of the cluster that the environment or Ray's own note on this machine names."""
    cluster = Cluster()
    if not (cluster.address or cluster.dashboard):
        nothing = skipped("RAY_ADDRESS is not set and no Ray runs here: segan starts its own")
        return [Check("cluster", lambda: nothing)]
    return [
        Check("cluster: address", cluster.reach),
        Check("cluster: dashboard", cluster.find_dashboard, seconds=FIND_SECONDS + 2 * TIMEOUT),
        Check("cluster: token", cluster.with_token, seconds=FIND_SECONDS),
        Check("cluster: without the token", cluster.without_token),
        Check("cluster: versions", cluster.versions),
        Check("cluster: State API", cluster.nodes),
    ]


class Cluster:
    """Where it is, and what has been found out about it.

    Attributes:
        address: host:port of its GCS, which drivers join at; empty where only the dashboard's
            is known.
        dashboard: its URL; empty until it is found.
    """

    def __init__(self) -> None:
        given = os.environ.get("RAY_ADDRESS", "")
        self.dashboard = os.environ.get("RAY_API_SERVER_ADDRESS", "")
        if given.startswith(("http://", "https://")):
            self.dashboard, given = self.dashboard or given, ""
        self.noted = "" if given and given != "auto" else _noted()
        self.address = self.noted or ("" if given == "auto" else given)
        self.answers = False
        self.headers: dict[str, str] = {}

    def reach(self) -> Outcome:
        if not self.address:
            return skipped("RAY_ADDRESS is not set; jobs can be submitted, not joined from here")
        where = urlsplit(self.address if "://" in self.address else f"gcs://{self.address}")
        try:
            with socket.create_connection((where.hostname or "", where.port or 0), TIMEOUT):
                pass
        except (OSError, ValueError) as error:
            if self.noted:
                start = "Ray ran here and ended; rm its ray_current_cluster, or ray start anew"
                return fails(f"{self.address}: {error}", start)
            return fails(f"{self.address}: {error}", START)
        return ok(f"{self.address} listens")

    def find_dashboard(self) -> Outcome:
        if not self.dashboard:
            # In a process of its own: Ray's client ends its process when it is not answered.
            try:
                self.dashboard = _ask_ray(FIND)
            except _SilentError as error:
                return fails(
                    f"{self.address} does not say where it is: {error}",
                    "give the cluster's token: RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH its file",
                )
        status, said = self._get("/api/gcs_healthz", {})  # which asks for no token
        if status != 200:
            return fails(f"{self.dashboard}: {status or said}", f"{START}; or a port forward")
        self.answers = True
        return ok(self.dashboard)

    def with_token(self) -> Outcome:
        if not self.answers:
            return skipped(NOT_TRIED)
        self.headers = json.loads(_ask_ray(HEADERS))
        status, said = self._get("/api/version", self.headers)
        if status == 200:
            return ok("accepted" if self.headers else "none given, none asked for")
        if status in (401, 403):
            had = "refused" if self.headers else "none found, and one is asked for"
            return fails(
                had, "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH the file with the cluster's"
            )
        return fails(f"{status}: {said}", START)

    def without_token(self) -> Outcome:
        if not self.answers:
            return skipped(NOT_TRIED)
        status, _ = self._get("/api/version", {})
        if status in (401, 403):
            return ok("refused")
        return warning(
            "taken: whoever reaches the cluster can run what they like on it",
            "start it with RAY_AUTH_MODE=token",
        )

    def versions(self) -> Outcome:
        """Ray's and Python's there and here, which a driver that joins must share."""
        found = self._answer("/api/v0/cluster_metadata")
        if found is None:
            return skipped(NOT_TRIED)
        there = (str(found["rayVersion"]), str(found["pythonVersion"]))
        here = (version("ray"), platform.python_version())
        words = "Ray {}, Python {}".format(*there)
        if there == here:
            return ok(f"{words}, as here")
        words += "; here Ray {}, Python {}".format(*here)
        if there[0] == here[0] and not self.address:
            return warning(words, "ray job submit works; to join from here both must be the same")
        return fails(words, "use the cluster's image or its versions here, or submit by job")

    def nodes(self) -> Outcome:
        found = self._answer("/api/v0/nodes?detail=true&limit=1000")
        if found is None:
            return skipped(NOT_TRIED)
        nodes = [node for node in found["result"]["result"] if node["state"] == "ALIVE"]
        sums = {
            kind: sum(node["resources_total"].get(kind, 0) for node in nodes)
            for kind in ("CPU", "GPU")
        }
        words = f"answers: {len(nodes)} nodes, {sums['CPU']:g} CPUs, {sums['GPU']:g} GPUs"
        if not nodes:
            return fails(words, START)
        return ok(words)

    def _answer(self, path: str) -> dict[str, Any] | None:
        """The data of an answer; None where nothing answers or the token is not taken."""
        if not self.answers:
            return None
        status, said = self._get(path, self.headers)
        if status in (401, 403):
            return None
        data: dict[str, Any] = json.loads(said)["data"]
        return data

    def _get(self, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and body; status 0 where there is no answer, with the reason."""
        request = urllib.request.Request(f"{self.dashboard.rstrip('/')}{path}", headers=headers)  # noqa: S310
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=TIMEOUT) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except (OSError, ValueError) as error:
            return 0, str(error)


def _noted() -> str:
    """The address of the Ray that was last started on this machine, as Ray notes it."""
    from ray._private.utils import read_ray_address

    return read_ray_address() or ""


class _SilentError(Exception):
    """Ray did not answer a question; the message is what it said instead."""


def _ask_ray(program: str) -> str:
    """The last line that a Python program of Ray's prints."""
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=FIND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise _SilentError(f"no answer in {FIND_SECONDS:g} s") from None
    lines = done.stdout.split("\n")
    if done.returncode or not done.stdout.strip():
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        # What was raised, in its first sentence, rather than where to read about it.
        raised = [line for line in said if "Error: " in line]
        raise _SilentError((raised or said)[-1].partition(". ")[0])
    return [line for line in lines if line.strip()][-1]
