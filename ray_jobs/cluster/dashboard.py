"""Requests to a cluster's dashboard, and Ray's own functions in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

from ray_jobs.cluster.ray_internals import RayInternal

TIMEOUT_S = 5.0
RAY_CALL_TIMEOUT_S = 25.0  # Ray is imported, and may wait 10 s for the cluster
UNAUTHORIZED = (401, 403)
CALL_SCRIPT = """
import importlib, json, sys
module, name, *arguments = json.loads(sys.argv[1])
print(json.dumps(getattr(importlib.import_module(module), name)(*arguments)))
"""


class NoAnswerError(Exception):
    """A call of Ray's failed; the message is the first sentence of its error."""


def get(url: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """The status and body of a GET request; status 0 with the error if there is no response."""
    request = urllib.request.Request(f"{url.rstrip('/')}{path}", headers=headers)  # noqa: S310
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with without_proxy.open(request, timeout=TIMEOUT_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError) as error:
        return 0, str(error)


def call_in_subprocess(function: RayInternal, *arguments: Any) -> Any:
    """Calls one of Ray's functions in a new process, since Ray exits where it gets no response.

    Args:
        arguments: values that JSON can hold, as must be the result.

    Raises:
        NoAnswerError: the call failed or took longer than `RAY_CALL_TIMEOUT_S`.
    """
    call = json.dumps([function.module, function.name, *arguments])
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", CALL_SCRIPT, call],
            capture_output=True,
            text=True,
            timeout=RAY_CALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"no response in {RAY_CALL_TIMEOUT_S:g} s") from None
    if done.returncode == 0 and done.stdout.strip():
        return json.loads(done.stdout.strip().splitlines()[-1])  # Ray may print before it
    lines = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
    errors = [line for line in lines if "Error: " in line]
    raise NoAnswerError((errors or lines)[-1].partition(". ")[0])
