"""All job types through Ray's job API and client, on a cluster without the project's code.

The client has only the dashboard's address, the token and a checkout. Takes minutes: each job
starts about ten processes that import torch (docs/measurements.md).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest

from infra.check_manifests import ROOT
from infra.local.cluster import RayCluster
from infra.local.s3 import S3Server
from segan import storage
from segan.runs.checkpoint import SEGMENTOR_FILE
from segan.runs.driver_log import read_log
from segan.runs.run import Run
from segan.runs.study import Study
from tests.cluster.job_client import JobClient, poll_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

BUCKET = "s3://submit-tests"
TINY = (
    f"data.records={BUCKET}/records network.width=2 augment.crop=64 training.batch_size=4 "
    "training.log_every_steps=1 cluster.threads_per_worker=1"
)
TRAIN = f"train {BUCKET}/runs/first {TINY} training.epochs=16 cluster.workers=2"
TUNE = (
    f"tune {BUCKET}/studies/first {TINY} training.epochs=2 search.trials=2 "
    "search.reduction_factor=2 search.grace_period=1"
)
# Ray starts one of each per cluster.
RAY_SYSTEM_ACTORS = {"_StatsActor", "TrainStateActor", "_AutoscalingCoordinatorActor"}


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """This process connects to no cluster."""


@pytest.fixture(scope="module")
def client(s3: S3Server, cluster_without_code: RayCluster) -> JobClient:
    s3.create_bucket(BUCKET.removeprefix("s3://"))
    return JobClient(cluster_without_code)


@pytest.fixture(scope="module")
def records(client: JobClient, archive: str) -> str:
    """The URI of the archive's records, which a job ingests before it makes a mistake."""
    code, output = client.submit(
        "ingest",
        f"ingest {archive} {BUCKET}/records --rows-per-shard 12",
        f"ingest {BUCKET}/nowhere {BUCKET}/out",
    )
    assert (code, storage.exists(f"{BUCKET}/records/manifest.json")) == (1, True), output
    return f"{BUCKET}/records"


@pytest.fixture(scope="module")
def stopped_epochs(client: JobClient, records: str) -> int:
    """The epochs of the last checkpoint of a job that was stopped during its training."""
    run = Run(f"{BUCKET}/runs/first")
    with client.start("train-1", TRAIN) as submitting:
        assert poll_until(600, run.latest_checkpoint), "no checkpoint came"
        client.request_api("jobs/train-1/stop", method="POST")
        submitting.communicate()
    latest = run.latest_checkpoint()
    assert latest is not None
    return latest.info.epochs


@pytest.fixture(scope="module")
def trained_run(client: JobClient, stopped_epochs: int) -> Run:
    code, output = client.submit("train-2", TRAIN)
    assert code == 0, output
    return Run(f"{BUCKET}/runs/first")


@pytest.fixture(scope="module")
def study(client: JobClient, records: str) -> Study:
    """The study of a job that makes a mistake after it."""
    code, output = client.submit("tune", TUNE, "train s3://b/run network.widht=8")
    study = Study(f"{BUCKET}/studies/first")
    assert (code, storage.exists(f"{study.uri}/leaderboard.json")) == (1, True), output
    return study


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_requests_without_the_token_are_rejected(client: JobClient, token: str | None) -> None:
    for path, method in (("jobs/", "GET"), ("jobs/", "POST"), ("jobs/ingest/logs", "GET")):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            client.request_api(path, token, method)
        assert refusal.value.code in (401, 403)


@pytest.mark.usefixtures("records", "study")
@pytest.mark.parametrize(
    ("job", "code", "message"),
    [
        ("ingest", 1, f"{BUCKET}/nowhere: "),
        ("tune", 2, "network.widht: unknown key"),
    ],
)
def test_a_user_error_is_one_line_and_an_exit_code(
    client: JobClient, job: str, code: int, message: str
) -> None:
    """The second command of the job is a mistake; the first has succeeded."""
    details = client.get_job(job)
    assert (details["status"], details["driver_exit_code"]) == ("FAILED", code)
    _, logs = client.get_logs_by_command(job)
    (line,) = logs
    assert line.startswith("segan: ")
    assert message in line


def test_the_log_outlives_the_jobs(client: JobClient, trained_run: Run, study: Study) -> None:
    messages = [line.message for line in read_log(trained_run.uri)]
    starts = [m for m in messages if m.startswith(f"segan train {trained_run}: segan ")]
    assert len(starts) == 2, messages
    assert any(m.startswith(f"{trained_run}: stopped after step ") for m in messages)
    assert messages[-1] == f"segan train {trained_run}: done"
    assert f"log: segan runs logs {trained_run}" in client.get_logs("train-2")
    of_study = [line.message for line in read_log(study.uri)]
    for trial in study.trials():
        assert any(m.startswith(f"{trial.name}  epoch 1  Jaccard ") for m in of_study)
        assert read_log(trial.run.uri)[-1].message == f"{trial.name} of {study.uri}: done"


def test_a_stopped_job_leaves_only_a_checkpoint(client: JobClient, stopped_epochs: int) -> None:
    """The checkpoint is of the current step, not of the end of the last epoch."""
    assert client.get_job("train-1")["status"] == "STOPPED"
    match = re.fullmatch(
        rf"segan: {BUCKET}/runs/first: stopped after step (\d+), with a checkpoint; "
        "run the same command to resume",
        client.get_logs("train-1")[-1],
    )
    assert match, client.get_logs("train-1")
    names = [c.name for c in Run(f"{BUCKET}/runs/first").checkpoints()]
    assert int(match[1]) > 5  # the first epoch's
    assert names
    assert 1 <= stopped_epochs < 16
    poll_until(60, lambda: not leaked_actors(client))
    assert leaked_actors(client) == set()


def test_the_same_command_resumes_the_run(
    client: JobClient, stopped_epochs: int, trained_run: Run
) -> None:
    epochs = [line["epoch"] for line in trained_run.metrics() if line["kind"] == "epoch"]
    steps = [line["step"] for line in trained_run.metrics() if line["kind"] == "step"]
    assert epochs == list(range(1, 17))
    assert steps == list(range(1, 16 * 42 // 8 + 1))
    told = [
        int(n) for n in re.findall(r"^epoch (\d+)/16 ", "\n".join(client.get_logs("train-2")), re.M)
    ]
    assert min(told) > stopped_epochs
    assert told[-1] == 16


def leaked_actors(client: JobClient) -> set[str]:
    groups = client.list_alive("placement_groups", "REMOVED")
    return {*groups, *client.list_alive("actors", "DEAD")} - RAY_SYSTEM_ACTORS


def test_a_study(study: Study) -> None:
    rows = study.leaderboard_rows()
    assert len(rows) == 2
    assert all(row.checkpoint and row.status != "unfinished" for row in rows)


def test_evaluate_and_predict(client: JobClient, trained_run: Run, archive: str) -> None:
    images = f"{archive}/ISIC-2017_Test_v2_Data"
    code, output = client.submit(
        "scores",
        f"evaluate {trained_run} {archive} --split test --json",
        f"predict {trained_run} {images} {BUCKET}/masks",
    )
    assert code == 0, output
    evaluated, _ = client.get_logs_by_command("scores")
    scores = json.loads(evaluated[-1])
    assert scores["num_images"] == len(scores["scores"]) == 4
    names = [file.name for file in storage.list_files(f"{BUCKET}/masks")]
    assert len([name for name in names if name.endswith("_segmentation.png")]) == 4
    assert {"predictions.csv", "predictions.json"} < set(names)
    assert len(names) == 6


IMPORT_BLOCKER = """
import sys

class ImportBlocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "torch", "segan"):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, ImportBlocker())
"""


def test_the_best_checkpoint_can_be_downloaded_with_boto3_alone(
    trained_run: Run, tmp_path: Path
) -> None:
    """With the example of docs/checkpoints.md."""
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    lines = page.split("```python\n")[1].split("```")[0]
    assert 'bucket, run = boto3.client("s3"), "bucket", "runs/first"' in lines
    program = IMPORT_BLOCKER + lines.replace('"bucket"', f'"{BUCKET.removeprefix("s3://")}"')
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    best = trained_run.best_checkpoint()
    assert best is not None
    assert (tmp_path / SEGMENTOR_FILE).read_bytes() == best.read(SEGMENTOR_FILE)


def test_credentials_are_in_no_page_log_or_object(
    client: JobClient, trained_run: Run, study: Study, s3: S3Server
) -> None:
    """Neither in the dashboard, in Ray's logs, nor in the files that Ray writes to the bucket."""
    secrets = (s3.access_key, s3.secret_key, client.cluster.token_path.read_text())
    kinds = ("actors", "nodes", "placement_groups", "runtime_envs", "tasks", "workers")
    pages = ["jobs/", "jobs/train-2/logs", *(f"v0/{kind}?detail=true&limit=1000" for kind in kinds)]
    written = {page: json.dumps(client.request_api(page)).encode() for page in pages}
    assert b"train-2" in written["jobs/"]
    files = [file for file in client.cluster.folder.rglob("*") if file.is_file()]
    assert any(file.name == "job-driver-train-2.log" for file in files)
    written |= {str(file): file.read_bytes() for file in files}
    kept = [f"{BUCKET}/{file.name}" for file in storage.list_files(BUCKET)]
    assert any("/tune/" in name for name in kept), "Tune's own pickles"
    written |= {name: storage.read_bytes(name) for name in kept}
    for name, content in written.items():
        assert not [secret for secret in secrets if secret.encode() in content], name
