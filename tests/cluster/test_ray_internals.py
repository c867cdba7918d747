"""The installed Ray has the undocumented parts that the jobs use."""

from __future__ import annotations

import re

import pytest

from infra.check_manifests import ROOT
from ray_jobs.cluster.ray_internals import INTERNALS, RayInternal


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """No cluster is needed."""


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda i: f"{i.module}.{i.name}")
def test_ray_has_the_attribute(internal: RayInternal) -> None:
    try:
        found = internal.load()
    except (ImportError, AttributeError) as error:
        pytest.fail(f"gone from this version of Ray: {error}; needed because {internal.reason}")
    assert found is not None


def test_nothing_else_of_the_project_uses_undocumented_parts() -> None:
    files = [
        file for folder in ("segan", "ray_jobs", "infra") for file in ROOT.glob(f"{folder}/**/*.py")
    ]
    private = re.compile(r"\bray(\.\w+)*\._\w+")
    found = {file.name for file in files if private.search(file.read_text())}
    assert found == {"ray_internals.py"}


def test_the_replaced_function_of_serve_is_there() -> None:
    from ray_jobs.cluster.ray_internals import SERVE_REPLICA

    assert callable(SERVE_REPLICA.load().add_port_to_grpc_server)
