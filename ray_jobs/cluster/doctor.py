"""Checks of the Ray cluster that jobs would run on, without connecting to it or starting anything.

They use its dashboard, as `ray job submit` does, and the port at which drivers connect.
"""

from __future__ import annotations

import json
import os
import platform
import socket
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from ray_jobs.cluster.dashboard import (
    RAY_CALL_TIMEOUT_S,
    TIMEOUT_S,
    UNAUTHORIZED,
    NoAnswerError,
    call_in_subprocess,
    get,
)
from ray_jobs.cluster.ray_internals import AUTH_HEADERS, DASHBOARD_ADDRESS, RECORDED_ADDRESS
from segan.doctor.checks import Check, Outcome, failed, ok, skipped, warning
from segan.utils.text import count_noun

START_HINT = (
    "check that the cluster runs and that the address is right; `make cluster` starts one here"
)
AUTH_HINT = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's token file"


def cluster_checks() -> list[Check]:
    """The checks of the cluster in the environment, or of the one that Ray has recorded here."""
    probe = ClusterProbe()
    if not (probe.address or probe.dashboard):
        outcome = skipped(
            "RAY_ADDRESS is not set and no Ray cluster runs here; segan starts its own"
        )
        return [Check("cluster", lambda: outcome)]
    dashboard, token = "cluster: dashboard", "cluster: token"
    dashboard_timeout_s = RAY_CALL_TIMEOUT_S + 2 * TIMEOUT_S
    return [
        Check("cluster: address", probe.check_address),
        Check(dashboard, probe.check_dashboard, timeout_s=dashboard_timeout_s),
        Check(token, probe.check_token, timeout_s=RAY_CALL_TIMEOUT_S, requires=dashboard),
        Check("cluster: anonymous access", probe.check_anonymous_access, requires=dashboard),
        Check("cluster: versions", probe.check_versions, requires=token),
        Check("cluster: State API", probe.check_nodes, requires=token),
    ]


class ClusterProbe:
    """The addresses of a cluster, and what the checks have found out about it so far.

    Attributes:
        address: host:port of the GCS, to which drivers connect; empty if only the dashboard's is
            known.
        dashboard: the dashboard's URL; empty until it is found.
        headers: with the token, for requests to the dashboard.
    """

    def __init__(self) -> None:
        configured = os.environ.get("RAY_ADDRESS", "")
        self.dashboard = os.environ.get("RAY_API_SERVER_ADDRESS", "")
        if configured.startswith(("http://", "https://")):
            self.dashboard, configured = self.dashboard or configured, ""
        is_configured = configured not in ("", "auto")
        self.recorded_address = "" if is_configured else RECORDED_ADDRESS.load()() or ""
        self.address = configured if is_configured else self.recorded_address
        self.headers: dict[str, str] = {}

    def check_address(self) -> Outcome:
        if not self.address:
            return skipped("RAY_ADDRESS is not set; jobs can be submitted, but not run from here")
        url = urlsplit(self.address if "://" in self.address else f"gcs://{self.address}")
        try:
            with socket.create_connection((url.hostname or "", url.port or 0), TIMEOUT_S):
                pass
        except (OSError, ValueError) as error:
            stale = "that cluster has ended; delete Ray's file ray_current_cluster, or start Ray"
            return failed(
                f"{self.address}: {error}", stale if self.recorded_address else START_HINT
            )
        return ok(f"{self.address} accepts connections")

    def check_dashboard(self) -> Outcome:
        if not self.dashboard:
            try:
                self.dashboard = call_in_subprocess(DASHBOARD_ADDRESS, None)
            except NoAnswerError as error:
                return failed(f"{self.address}: dashboard not found: {error}", AUTH_HINT)
        status, body = get(self.dashboard, "/api/gcs_healthz", {})  # needs no token
        if status != 200:
            hint = f"{START_HINT}; on Kubernetes, forward the port"
            return failed(f"{self.dashboard}: {status or body}", hint)
        return ok(self.dashboard)

    def check_token(self) -> Outcome:
        self.headers = call_in_subprocess(AUTH_HEADERS, {})
        status, body = get(self.dashboard, "/api/version", self.headers)
        if status == 200:
            return ok("accepted" if self.headers else "not required, and none configured")
        if status in UNAUTHORIZED:
            return failed("rejected" if self.headers else "required, but none found", AUTH_HINT)
        return failed(f"{status}: {body}", START_HINT)

    def check_anonymous_access(self) -> Outcome:
        status, _ = get(self.dashboard, "/api/version", {})
        if status in UNAUTHORIZED:
            return ok("rejected")
        return warning(
            "accepted: everybody who can reach the cluster can run code on it",
            "start the cluster with RAY_AUTH_MODE=token",
        )

    def check_versions(self) -> Outcome:
        """Drivers need the same Ray and Python as the cluster; submitted jobs do not."""
        metadata = self._get_data("/api/v0/cluster_metadata")
        remote = (str(metadata["rayVersion"]), str(metadata["pythonVersion"]))
        local = (version("ray"), platform.python_version())
        message = "Ray {}, Python {}".format(*remote)
        if remote == local:
            return ok(f"{message}, the same as here")
        message += "; here Ray {}, Python {}".format(*local)
        if remote[0] == local[0] and not self.address:
            return warning(message, "ray job submit works; a driver here needs the same versions")
        return failed(message, "install the same versions here, or use ray job submit")

    def check_nodes(self) -> Outcome:
        data = self._get_data("/api/v0/nodes?detail=true&limit=1000")
        nodes = [node for node in data["result"]["result"] if node["state"] == "ALIVE"]
        counts = [count_noun(len(nodes), "node")]
        for kind in ("CPU", "GPU"):
            total = sum(node["resources_total"].get(kind, 0) for node in nodes)
            counts.append(count_noun(total, kind))
        return ok(", ".join(counts)) if nodes else failed(", ".join(counts), START_HINT)

    def _get_data(self, path: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(get(self.dashboard, path, self.headers)[1])["data"]
        return data
