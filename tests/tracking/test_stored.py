"""What trackers get of a stored run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from segan import storage
from segan.cli.main import main
from segan.config import load_config
from segan.errors import UsageError
from segan.runs.run import Run
from segan.runs.trial import TrialStatus
from segan.tracking.copy import track_live
from segan.tracking.stored import (
    MetricPoint,
    describe_run,
    describe_study,
    iter_metrics,
    run_status,
    started_trials,
    stored_files,
)
from segan.tracking.tracker import TrackerName, open_tracker
from tests.stored_runs import FINGERPRINT, store_metrics, store_run, store_study


def test_points_by_hand(tmp_path: Path) -> None:
    run = store_run(str(tmp_path / "run"), 0.5, 0.6)
    points = list(iter_metrics(run))
    # An epoch has 20 images and takes 8 s of training and 2 s of validation.
    assert [(point.samples, point.seconds) for point in points] == [
        (20, 0.0),
        (20, 10.0),
        (40, 10.0),
        (40, 20.0),
    ]
    step = {"step/epoch": 2, "step/k": 1.0, "step/learning_rate": 0.003}
    assert points[2] == MetricPoint(40, 10.0, {**step, "step/segmentor_loss": 0.25})
    assert points[3].values["epoch/jaccard"] == 0.6
    assert points[3].values["epoch/stage_seconds/validation"] == 2.0
    assert "epoch/jaccard_curve" not in points[3].values, "a list is no metric"
    assert list(iter_metrics(run, 20)) == points[2:]
    assert list(iter_metrics(run, 40)) == []


def test_a_run_is_described_with_what_it_was_computed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGAN_GIT_COMMIT", "abc123")
    item = describe_run(store_run(str(tmp_path / "first"), 0.5))
    assert (item.name, item.kind, item.group) == ("first", "run", None)
    assert item.params["optimizer.learning_rate"] == 0.003
    assert not any(key.startswith(("search.", "tracking.")) for key in item.params)
    assert item.tags["git_commit"] == "abc123"
    assert item.tags["fingerprint"] == FINGERPRINT
    assert item.tags["version.torch"]


def test_a_run_has_finished_with_its_last_epoch(tmp_path: Path) -> None:
    run = store_run(str(tmp_path), 0.5, 0.6, epochs=3)
    item = describe_run(run)
    assert run_status(run, item) is TrialStatus.UNFINISHED
    store_metrics(run, 0.5, 0.6, 0.7)
    assert run_status(run, item) is TrialStatus.FINISHED


def test_a_study_has_its_trials_and_its_search(tmp_path: Path) -> None:
    study, config = store_study(str(tmp_path / "study"), "search.trials=3")
    first, second, _ = study.trials()
    for trial in (first, second):
        trial.run.create_or_resume(trial.build_config(config), FINGERPRINT)
    assert [run.uri for run in started_trials(study)] == [first.run.uri, second.run.uri]
    item = describe_study(study, 0.0)
    assert (item.kind, item.params["search.trials"], item.group) == ("study", 3, "study")
    assert describe_run(first.run, "study").kind == "trial"


def test_files_are_the_report_the_log_and_the_metrics(tmp_path: Path) -> None:
    run = store_run(str(tmp_path), 0.5)
    for name in ("report.html", "driver.log", "checkpoints/epoch_00001/segmentor.safetensors"):
        storage.write_bytes(f"{run.uri}/{name}", name.encode())
    files = stored_files(describe_run(run))
    assert files.keys() == {"report.html", "driver.log", "metrics.jsonl"}
    assert [json.loads(line) for line in files["metrics.jsonl"].splitlines()] == run.metrics()


def test_a_tracker_does_not_belong_to_a_runs_identity(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    for overrides in ([], ["tracking.wandb=lesions"]):
        run.create_or_resume(load_config(None, overrides), FINGERPRINT)
    assert run.description()["config"]["tracking"]["wandb"] is None


def test_credentials_in_the_servers_uri_are_refused() -> None:
    with pytest.raises(UsageError, match=r"tracking\.mlflow: expected a URI without credentials"):
        load_config(None, ["tracking.mlflow=http://me:secret@host"])


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named(
    name: TrackerName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(UsageError, match=rf"needs {name}.*pip install 'segan\[{name}\]'"):
        open_tracker(name)
    config = load_config(None, [f"tracking.{name}=http://127.0.0.1:5000"]).tracking
    with pytest.raises(UsageError, match="not installed"), track_live(config, str(tmp_path)):
        pytest.fail("a training began that cannot be tracked")


def test_another_tracker_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "track", str(tmp_path), "--to", "neptune"]) == 2
    assert "'neptune' is not one of 'mlflow', 'wandb'" in capsys.readouterr().err
