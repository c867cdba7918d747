"""Runs and studies on a real MLflow server on 127.0.0.1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.local.processes import free_ports
from segan import storage
from segan.cli.main import main
from segan.config import load_config
from segan.runs.trial import TrialStatus
from segan.tracking.copy import TrackerCopy, track_live
from segan.tracking.tracker import open_tracker
from tests.stored_runs import FINGERPRINT, store_metrics, store_run, store_study

mlflow = pytest.importorskip("mlflow", reason="no mlflow; install segan[mlflow] and mlflow")
pytest.importorskip("flask", reason="no MLflow server; install mlflow, not only mlflow-skinny")
START_ATTEMPTS = 600


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a server with an empty store."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_ports(1)[0]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/runs.db"]
    command += ["--artifacts-destination", f"{folder}/artifacts", "--workers", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(START_ATTEMPTS):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=1):
                    break
            except OSError:
                time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait()


@pytest.fixture
def client(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """A client; what the test tracks goes to an experiment of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    return mlflow.MlflowClient(server)


def find_runs(client: Any) -> dict[str, Any]:
    """The runs of the test's experiment by name."""
    found = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    runs = client.search_runs([found.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def history(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]


def test_a_run_with_parameters_curves_tags_and_artifacts(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGAN_GIT_COMMIT", "abc123")
    run = store_run(str(tmp_path / "first"), 0.5, 0.6, epochs=2)
    storage.write_bytes(f"{run.uri}/report.html", b"<!doctype html>")
    assert main(["runs", "track", run.uri, "--to", "mlflow", "--json"]) == 0
    (counted,) = json.loads(capsys.readouterr().out)["items"]
    tracked = find_runs(client)["first"]
    assert (counted["uri"], counted["id"], counted["num_points"]) == (
        run.uri,
        tracked.info.run_id,
        4,
    )
    assert history(client, tracked, "epoch/jaccard") == [(20, 0.5), (40, 0.6)]
    assert history(client, tracked, "step/segmentor_loss") == [(20, 0.5), (40, 0.25)]
    assert tracked.data.params["optimizer.learning_rate"] == "0.003"
    assert tracked.data.tags["mlflow.source.git.commit"] == "abc123"
    assert tracked.data.tags["segan.fingerprint"] == FINGERPRINT
    assert tracked.info.status == "FINISHED"
    names = {file.path for file in client.list_artifacts(tracked.info.run_id)}
    assert names == {"report.html", "metrics.jsonl"}


def test_a_second_call_goes_on_where_the_first_was(client: Any, tmp_path: Path) -> None:
    run = store_run(str(tmp_path / "first"), 0.5)
    points = []
    for jaccards in ((0.5,), (0.5, 0.6), (0.5, 0.6)):
        store_metrics(run, *jaccards)
        copy = TrackerCopy(run.uri, "mlflow", open_tracker("mlflow"))
        copy.update(final=True)
        points.append(copy.counts[run.uri].num_points)
    assert points == [2, 2, 0]
    tracked = find_runs(client)["first"]
    assert history(client, tracked, "epoch/jaccard") == [(20, 0.5), (40, 0.6)]
    assert tracked.info.status == "KILLED", "two of four epochs, and no driver"


def test_points_that_are_sent_twice_are_kept_once(client: Any, tmp_path: Path) -> None:
    """As after a kill between the metrics and the position."""
    run = store_run(str(tmp_path / "first"), 0.5, 0.6)
    for _ in range(2):
        TrackerCopy(run.uri, "mlflow", open_tracker("mlflow")).update(final=True)
        tracked = find_runs(client)["first"]
        client.delete_tag(tracked.info.run_id, "segan.samples")
    assert history(client, tracked, "epoch/jaccard") == [(20, 0.5), (40, 0.6)]


def test_a_studys_trials_are_its_children(client: Any, tmp_path: Path) -> None:
    study, config = store_study(str(tmp_path / "study"), "search.trials=3", epochs=2)
    first, second, _ = study.trials()
    for trial, *jaccards in ((first, 0.5, 0.6), (second, 0.3)):
        trial.run.create_or_resume(trial.build_config(config), FINGERPRINT)
        store_metrics(trial.run, *jaccards)
    first.mark_done(TrialStatus.FINISHED, 20.0)
    copy = TrackerCopy(study.uri, "mlflow", open_tracker("mlflow"))
    copy.update()
    runs = find_runs(client)
    parent = runs.pop("study")
    assert {name: run.info.status for name, run in runs.items()} == {
        "trial_000": "FINISHED",
        "trial_001": "RUNNING",
    }
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    rate = first.parameters["optimizer.learning_rate"]
    assert runs["trial_000"].data.params["optimizer.learning_rate"] == str(rate)
    assert parent.data.params["search.trials"] == "3"
    copy.update(final=True)
    assert {run.info.status for run in find_runs(client).values()} == {"FINISHED", "KILLED"}


def test_a_training_is_tracked_live_and_outlives_the_server(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("segan.tracking.copy.UPDATE_INTERVAL_S", 0.05)
    server = os.environ["MLFLOW_TRACKING_URI"]
    with track_live(load_config(None, [f"tracking.mlflow={server}"]).tracking, f"{tmp_path}/run"):
        run = store_run(str(tmp_path / "run"), 0.5)
        while not _has_points(client, 1):
            time.sleep(0.05)
        store_metrics(run, 0.5, 0.6)
    assert history(client, find_runs(client)["run"], "epoch/jaccard") == [(20, 0.5), (40, 0.6)]

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    gone = load_config(None, [f"tracking.mlflow=http://127.0.0.1:{free_ports(1)[0]}"]).tracking
    with track_live(gone, run.uri):
        pass
    (message,) = caplog.messages
    assert message.startswith("tracker mlflow: ")
    assert message.endswith(f"complete it with `segan runs track {run.uri} --to mlflow`")


def _has_points(client: Any, count: int) -> bool:
    found = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    runs = client.search_runs([found.experiment_id]) if found else []
    return bool(runs) and len(history(client, runs[0], "epoch/jaccard")) == count


def test_without_a_server_the_variable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["runs", "track", str(tmp_path), "--to", "mlflow"]) == 2
    assert "set MLFLOW_TRACKING_URI" in capsys.readouterr().err
