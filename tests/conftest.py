"""Shared fixtures: a clean environment, a real S3 server, a real Ray head and the real data.

Quick tests run first. With SEGAN_TEST_BUDGET=1, a test fails that takes longer than BUDGET_S
without a `slow` mark.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from infra.local.cluster import RayCluster, ray_cluster
from infra.local.s3 import S3Server, s3_server
from ray_jobs import SINGLE_NODE_ENV
from tests.environment import temporary_environment

if TYPE_CHECKING:
    from tests.report.tiny_study import TinyStudy

# Ray and torch read these at import, and test modules import them before any fixture runs.
os.environ.update(
    {
        **SINGLE_NODE_ENV,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "RAY_AUTH_MODE": "token",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
)

# A shell without job control starts background commands with Ctrl-C ignored, and what the tests
# start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# These would connect tests to another Ray cluster.
RAY_CONNECTION_VARIABLES = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
)

# The order of the tests: those without a mark, then those with each of these.
MARKS_BY_COST = ("integration", "browser", "cluster")
BUDGET_S = 60.0

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests that start less first."""

    def cost(item: pytest.Item) -> int:
        return max(
            (i for i, m in enumerate(MARKS_BY_COST, 1) if item.get_closest_marker(m)), default=0
        )

    items.sort(key=cost)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails a test over the budget, if asked to."""
    report = yield
    is_over = report.when == "call" and report.passed and call.duration > BUDGET_S
    if (
        is_over
        and os.environ.get("SEGAN_TEST_BUDGET") == "1"
        and not item.get_closest_marker("slow")
    ):
        report.outcome = "failed"
        report.longrepr = (
            f"{call.duration:.0f} s, over {BUDGET_S:.0f} s: shorten it or mark it slow"
        )
    return report


@pytest.fixture(scope="session", autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hides the credentials, settings and tokens of the user; creates a Ray token."""
    home = tmp_path_factory.mktemp("home")
    token = home / ".ray" / "auth_token"  # Ray's default path
    token.parent.mkdir()
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        for name in [*os.environ]:
            if name.startswith("AWS_") or name in RAY_CONNECTION_VARIABLES:
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        yield


@pytest.fixture(autouse=True)
def isolated_from_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the tests' Ray head, which may be running, from tests that do not use it."""
    if "ray_session" not in request.fixturenames:
        for name in RAY_CONNECTION_VARIABLES:
            monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def s3(clean_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The S3 server, and the environment to connect to it."""
    with (
        s3_server(tmp_path_factory.mktemp("s3")) as server,
        temporary_environment(server.environment),
    ):
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """The URI of a new, empty bucket."""
    name = f"test-{secrets.token_hex(4)}"
    s3.create_bucket(name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def ray_session(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A Ray head with 4 logical CPUs using the S3 server, joined by this process."""
    with (
        ray_cluster(tmp_path_factory.mktemp("ray"), 4, s3.environment) as cluster,
        temporary_environment(cluster.environment),
    ):
        import ray

        ray.init()
        try:
            yield cluster
        finally:
            ray.shutdown()


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """A study of three short runs and their ensemble; a test that changes them copies them."""
    from tests.report.tiny_study import build_tiny_study  # imports torch

    return build_tiny_study(str(tmp_path_factory.mktemp("study")))


@pytest.fixture(scope="session")
def isic2017() -> Path:
    """The folder of the real dataset; without it, the test is skipped."""
    default = Path(__file__).parents[2] / "shared" / "data" / "isic2017"
    folder = Path(os.environ.get("SEGAN_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no ISIC 2017 data in {folder}; set SEGAN_TEST_DATA to its folder")
    return folder
