"""Errors of connecting to a cluster."""

from __future__ import annotations

import platform

import pytest
import ray
from ray._private.utils import check_version_info

from ray_jobs.cluster.connect import restate_version_mismatch


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """These tests connect to no cluster."""


def test_another_version_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the error that Ray raises for a cluster of another version."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    metadata = {"ray_version": "2.8.1", "python_version": "3.9.18"}
    with pytest.raises(RuntimeError) as mismatch:
        check_version_info(metadata, "node 10.0.0.7:6379")
    message = str(restate_version_mismatch(mismatch.value))
    assert message.startswith(
        "the cluster 10.0.0.7:6379 runs Ray 2.8.1 on Python 3.9.18, this process Ray "
        f"{ray.__version__} on Python {platform.python_version()}; "
    )
    assert "\n" not in message


def test_another_error_of_ray_stays_as_it_is() -> None:
    error = RuntimeError("Failed to start the GCS\n Ray: no")
    assert restate_version_mismatch(error) is error
