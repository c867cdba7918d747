"""Errors of connecting to a cluster."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import ray
from ray._private.utils import check_version_info

from ray_jobs.cluster.connect import restate_connection_error


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """These tests connect to no cluster."""


def test_another_version_is_refused_in_one_line() -> None:
    """With the error that Ray raises for a cluster of another version."""
    metadata = {"ray_version": "2.8.1", "python_version": "3.9.18"}
    with pytest.raises(RuntimeError) as mismatch:
        check_version_info(metadata, "node 10.0.0.7:6379")
    message = str(restate_connection_error(mismatch.value, "10.0.0.7:6379"))
    assert message.startswith(
        "RAY_ADDRESS=10.0.0.7:6379: the cluster runs Ray 2.8.1 on Python 3.9.18, this process Ray "
        f"{ray.__version__} on Python {platform.python_version()}; "
    )
    assert "\n" not in message


def test_importing_the_jobs_leaves_preempted_nodes_watched() -> None:
    """The cluster that Ray has recorded on this machine, which a command joins, may have others."""
    name = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    program = f"import os, ray_jobs; print(os.environ.get({name!r}))"
    environment = {key: value for key, value in os.environ.items() if key != name}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "None\n"


def test_another_error_is_reported_by_its_first_line() -> None:
    error = RuntimeError("Failed to start the GCS\n Ray: no")
    message = str(restate_connection_error(error, "10.0.0.7:6379"))
    assert message.startswith("RAY_ADDRESS=10.0.0.7:6379: Failed to start the GCS; ")
    assert "\n" not in message


def test_ray_clients_traceback_is_reported_by_its_last_line() -> None:
    error = ConnectionAbortedError(
        "Initialization failure from server:\nTraceback (most recent call last):\n"
        '  File "proxier.py", line 776, in Datapath\nRuntimeError: Proxy failed to Connect\n'
    )
    message = str(restate_connection_error(error, "ray://10.0.0.7:10001"))
    assert message.startswith(
        "RAY_ADDRESS=ray://10.0.0.7:10001: RuntimeError: Proxy failed to Connect; "
    )
    assert "\n" not in message
