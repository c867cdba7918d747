"""Each command that RAY_ADDRESS makes join a cluster, on nodes without the project's code."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from infra.check_manifests import ROOT
from infra.local.cluster import RayCluster
from segan import storage
from segan.evaluation.compare import ABLATION_REPORT
from segan.runs.run import Run
from segan.runs.study import Study
from tests.environment import temporary_environment

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

PLACE = "s3://cluster-tests/joined"
TINY = (
    f"data.records={PLACE}/records network.width=2 augment.crop=64 training.batch_size=4 "
    "training.epochs=1 cluster.threads_per_worker=1 evaluation.report=false"
)


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """This process connects to no cluster."""


def run(cluster: RayCluster, command: str, client_mode: bool = False) -> str:
    """Runs a command as a user with RAY_ADDRESS does; returns its stdout."""
    address = cluster.client_address if client_mode else cluster.address
    with temporary_environment({**cluster.environment, "RAY_ADDRESS": address}):
        done = subprocess.run(
            [sys.executable, "-m", "segan", *shlex.split(command)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert f"joining the Ray cluster {address}, whose processes get this" in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def records(cluster_without_code: RayCluster, archive: str) -> str:
    run(cluster_without_code, f"ingest {archive} {PLACE}/records --rows-per-shard 12")
    return f"{PLACE}/records"


@pytest.fixture(scope="module")
def trained_run(cluster_without_code: RayCluster, records: str) -> Run:
    run(cluster_without_code, f"train {PLACE}/run {TINY}", client_mode=True)
    return Run(f"{PLACE}/run")


def test_train(trained_run: Run) -> None:
    assert [line["epoch"] for line in trained_run.metrics() if line["kind"] == "epoch"] == [1]
    assert trained_run.best_checkpoint() is not None


@pytest.mark.usefixtures("records")
def test_tune(cluster_without_code: RayCluster) -> None:
    run(cluster_without_code, f"tune {PLACE}/study {TINY} search.trials=1", client_mode=True)
    (row,) = Study(f"{PLACE}/study").leaderboard_rows()
    assert row.checkpoint


@pytest.mark.usefixtures("records")
def test_ablate(cluster_without_code: RayCluster) -> None:
    variants = "ablation.seeds=1 'ablation.variants={paper: {}, sigmoid: {logistic.final_k: 1.0}}'"
    run(cluster_without_code, f"ablate {PLACE}/claims {TINY} {variants}")
    result = json.loads(storage.read_bytes(f"{PLACE}/claims/{ABLATION_REPORT}"))
    assert {row["trial"] for row in result["runs"] if row["checkpoint"]} == {
        "paper-seed0",
        "sigmoid-seed0",
    }


def test_evaluate(cluster_without_code: RayCluster, trained_run: Run, archive: str) -> None:
    command = f"evaluate {trained_run} {archive} --split test --json"
    scores = json.loads(run(cluster_without_code, command, client_mode=True))
    assert scores["num_images"] == len(scores["scores"]) == 4


def test_predict(cluster_without_code: RayCluster, trained_run: Run, archive: str) -> None:
    images = f"{archive}/ISIC-2017_Test_v2_Data"
    run(cluster_without_code, f"predict {trained_run} {images} {PLACE}/masks")
    names = [file.name for file in storage.list_files(f"{PLACE}/masks")]
    assert len([name for name in names if name.endswith("_segmentation.png")]) == 4
