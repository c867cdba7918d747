"""Ray's job client, as used from another machine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infra.check_manifests import ROOT, RUNTIME_ENV
from infra.local.cluster import RayCluster
from infra.local.processes import find_executable

NEXT_COMMAND = "-- the next command --"  # a line in the logs of a job


@dataclass(frozen=True)
class JobClient:
    """A user with the dashboard's address and the token, but no S3 credentials."""

    cluster: RayCluster

    def start(self, name: str, *commands: str) -> subprocess.Popen[str]:
        """Submits a job that runs one command after another until one of them fails."""
        entrypoint = shlex.split(f"python -m ray_jobs.{commands[0]}")
        if len(commands) > 1:
            programs = [f"python -m ray_jobs.{command}" for command in commands]
            script = f" && echo {NEXT_COMMAND} && ".join(programs)
            entrypoint = ["sh", "-c", script]
        options = ["--working-dir", ".", "--runtime-env", RUNTIME_ENV, "--submission-id", name]
        return subprocess.Popen(
            [find_executable("ray"), "job", "submit", *options, "--", *entrypoint],
            cwd=ROOT,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def submit(self, name: str, *commands: str) -> tuple[int, str]:
        """The client's exit code (1 for any failure) and output, after the job has ended."""
        with self.start(name, *commands) as client:
            output, _ = client.communicate()
        return client.returncode, output

    def request_api(self, path: str, token: str | None = "valid", method: str = "GET") -> Any:
        if token == "valid":
            token = self.cluster.token_path.read_text()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(
            f"{self.cluster.dashboard}/api/{path}", headers=headers, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def get_job(self, name: str) -> dict[str, Any]:
        return self.request_api(f"jobs/{name}")

    def get_logs(self, name: str) -> list[str]:
        """The lines of the job's entrypoint, from the job API."""
        lines = self.request_api(f"jobs/{name}/logs")["logs"].splitlines()
        began = next(i for i, line in enumerate(lines) if line.startswith("Running entrypoint"))
        return lines[began + 1 :]

    def get_logs_by_command(self, name: str) -> list[list[str]]:
        """The lines of each command that the job has started."""
        logs: list[list[str]] = [[]]
        for line in self.get_logs(name):
            if line == NEXT_COMMAND:
                logs.append([])
            else:
                logs[-1].append(line)
        return logs

    def list_alive(self, kind: str, end_state: str) -> list[str]:
        """The names of the resources of a kind that are not in their end state."""
        resources = self.request_api(f"v0/{kind}?limit=1000")["data"]["result"]["result"]
        return [r.get("class_name") or r["name"] for r in resources if r["state"] != end_state]

    def _environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_A"))}
        inherited.pop("PYTHONPATH", None)
        names = ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
        return inherited | {name: self.cluster.environment[name] for name in names}


def poll_until(seconds: float, condition: Callable[[], Any]) -> Any:
    """The first truthy value of `condition()`, or its last value after the timeout."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return value
