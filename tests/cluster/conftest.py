"""Small records in the bucket, and configurations of runs on the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from infra.local.cluster import RayCluster, ray_cluster
from infra.local.namespaces import Namespace, namespaces
from infra.local.processes import StartError
from infra.local.s3 import S3Server
from ray_jobs.cluster.connect import PACKAGES
from segan import storage
from segan.config import Config, load_config
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, ingest, local_executor
from segan.data.synthetic import generate_archive

SPLIT_SIZES = {"train": 42, "validation": 6, "test": 4}
BUCKET = "s3://cluster-tests"


@pytest.fixture(scope="session")
def archive(s3: S3Server) -> str:
    """The URI of a synthetic archive in the bucket."""
    s3.create_bucket(BUCKET.removeprefix("s3://"))
    uri = f"{BUCKET}/archive"
    generate_archive(
        SPLIT_SIZES, 0, lambda name, body: storage.write_bytes(f"{uri}/{name}", body), 64
    )
    return uri


@pytest.fixture(scope="session")
def records(archive: str) -> str:
    """The URI of its records, in several shards of unequal size."""
    uri = f"{BUCKET}/records"
    ingest(open_archive(archive), uri, IngestOptions(rows_per_shard=12), local_executor(1))
    return uri


@pytest.fixture(scope="session")
def make_config(records: str) -> Callable[..., Config]:
    """Builds the configuration of a tiny run, with overrides."""

    def configure(*overrides: str) -> Config:
        tiny = ["network.width=2", "augment.crop=64", "training.batch_size=4", "training.epochs=2"]
        common = [f"data.records={records}", "cluster.threads_per_worker=1"]
        return load_config(None, [*tiny, *common, *overrides])

    return configure


@pytest.fixture(scope="module")
def cluster_without_code(
    s3: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RayCluster]:
    """A cluster on which `import segan` works only with a copy that came with the job."""
    empty = tmp_path_factory.mktemp("site")
    for package in PACKAGES:
        (empty / package).mkdir()
        (empty / package / "__init__.py").write_text("raise ImportError('not from the job')\n")
    environment = s3.environment | {"PYTHONPATH": str(empty)}
    with ray_cluster(tmp_path_factory.mktemp("ray"), 4, environment) as cluster:
        yield cluster


@contextmanager
def hosts_or_skip(*names: str) -> Iterator[list[Namespace]]:
    """Hosts with these names; skips the test if the machine cannot create them."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(namespaces(names))
        except StartError as error:
            pytest.skip(f"no network namespaces on this machine: {error}")
        yield found


@pytest.fixture
def make_hosts() -> Iterator[Callable[..., list[Namespace]]]:
    """Creates hosts with these names; skips the test if the machine cannot."""
    with ExitStack() as stack:
        yield lambda *names: stack.enter_context(hosts_or_skip(*names))


@pytest.fixture(autouse=True)
def ray_connection(ray_session: RayCluster) -> None:
    """Connects to the cluster for all tests of this package."""
