"""The progress of runs and studies, on the terminal and as a page that reloads itself."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from segan import storage
from segan.cli.main import main
from segan.cli.progress import describe_changes
from segan.errors import StorageError, UsageError
from segan.report.live import REFRESH_INTERVAL_S, LiveServer
from segan.report.progress import ProgressReader, describe_progress
from segan.runs.study import Study
from segan.runs.trial import TrialStatus
from segan.storage.lease import hold_lease
from tests.stored_runs import FINGERPRINT, store_metrics, store_run, store_study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of 4 epochs: a finished, a pruned and a started trial, and one that waits."""
    study, config = store_study(
        str(tmp_path / "study"), "search.trials=4", "search.reduction_factor=2"
    )
    finished, pruned, started, _ = study.trials()
    for trial, *jaccards in (
        (finished, 0.3, 0.5, 0.7, 0.6),
        (pruned, 0.2),
        (started, 0.4, 0.4),
    ):
        trial.run.create_or_resume(trial.build_config(config), FINGERPRINT)
        store_metrics(trial.run, *jaccards)
    finished.mark_done(TrialStatus.FINISHED, 40.0)
    pruned.mark_done(TrialStatus.PRUNED, 10.0, "after epoch 1")
    return study


def test_a_studys_progress_by_hand(study: Study) -> None:
    with hold_lease(study.uri):
        progress = ProgressReader(study.uri).read()
    assert [(t.name, t.status, t.reason, t.epochs) for t in progress.trials] == [
        ("trial_000", "finished", "", 4),
        ("trial_002", "unfinished", "running", 2),
        ("trial_001", "pruned", "after epoch 1", 1),
        ("trial_003", "unfinished", "waiting", 0),
    ]
    assert progress.best
    assert (progress.best.name, progress.best.jaccard, progress.best.best_epoch) == (
        "trial_000",
        0.7,
        3,
    )
    assert [(r.epoch, r.num_reached, r.num_promoted) for r in progress.rungs] == [
        (1, 3, 2),
        (2, 2, 1),
    ]
    # An epoch takes 10 s. The started trial has two more; the waiting one is expected to have
    # (4 + 1) / 2, as the two that have ended.
    assert progress.seconds_left == 2 * 10 + 2.5 * 10


def test_a_study_without_a_driver_is_stopped(study: Study) -> None:
    progress = ProgressReader(study.uri).read()
    assert progress.host is None
    assert progress.trials[1].reason == "stopped"
    assert describe_progress(progress) == (
        "2 of 4 trials ended; 7 epochs; best Jaccard 0.7000 (trial_000, epoch 3); "
        "stopped (no driver)"
    )


def test_trials_that_optuna_has_yet_to_suggest_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="no optuna")
    study, _ = store_study(str(tmp_path), "search.algorithm=optuna", "search.trials=5")
    study.add_trials([{"logistic.final_k": 0.3}])
    progress = ProgressReader(study.uri).read()
    assert (len(progress.trials), progress.num_missing, progress.seconds_left) == (1, 4, None)


def test_a_runs_progress_by_hand(tmp_path: Path) -> None:
    run = store_run(str(tmp_path / "run"), 0.5)
    reader = ProgressReader(run.uri)
    with hold_lease(run.uri):
        assert reader.read().seconds_left == 3 * 10
        store_metrics(run, 0.5, 0.6, 0.7, 0.65)
        progress = reader.read()
    assert (progress.seconds_left, progress.num_ended) == (0.0, 1)
    assert describe_progress(progress) == ("4 of 4 epochs; best Jaccard 0.7000 (epoch 3); ended")


def test_a_trial_that_has_ended_is_read_once(study: Study) -> None:
    reader = ProgressReader(study.uri)
    reader.read()
    ended = study.get_trial("trial_000")
    storage.delete_folder(ended.run.uri)
    assert reader.read().trials[0].name == "trial_000"


def test_where_nothing_is_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no run here"):
        ProgressReader(str(tmp_path))


def test_plain_lines_say_what_has_changed(study: Study) -> None:
    shown: set[str] = set()
    reader = ProgressReader(study.uri)
    with hold_lease(study.uri):
        first = list(describe_changes(reader.read(), shown))
        again = list(describe_changes(reader.read(), shown))
        store_metrics(study.get_trial("trial_002").run, 0.4, 0.4, 0.8)
        changed = list(describe_changes(reader.read(), shown))
    assert first[:2] == [
        "trial_000  epoch 4/4  best Jaccard 0.7000  finished",
        "trial_002  epoch 2/4  best Jaccard 0.4000  running",
    ]
    assert again == []
    assert changed[0] == "trial_002  epoch 3/4  best Jaccard 0.8000  running"
    assert changed[1].startswith("study: 2 of 4 trials ended; 8 epochs; best Jaccard 0.8000")


def test_the_command_shows_the_progress_once(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "watch", study.uri, "--once"]) == 0
    shown = capsys.readouterr().out
    for text in ("trial_000", "0.7000", "2/4", "pruned", "1: 2/3, 2: 1/2", "2 of 4 trials ended"):
        assert text in shown
    assert main(["runs", "watch", study.uri, "--once", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["kind"], len(content["trials"]), content["host"]) == ("study", 4, None)
    # Without a driver there is nothing to wait for.
    assert main(["runs", "watch", study.uri]) == 0
    assert "trial_003  epoch 0/4  waiting\n" in capsys.readouterr().out


@contextmanager
def serve(uri: str) -> Iterator[LiveServer]:
    with LiveServer(ProgressReader(uri), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(server: LiveServer, path: str = "/", host: str = "") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET", path, headers={"Host": host} if host else {})
    return connection.getresponse()


def test_the_page_is_rendered_at_each_request_and_reloads_itself(study: Study) -> None:
    with serve(study.uri) as server:
        with hold_lease(study.uri):
            response = get(server)
            first = response.read().decode()
            assert response.headers["Refresh"] == str(REFRESH_INTERVAL_S)
            store_metrics(study.get_trial("trial_002").run, 0.4, 0.4, 0.8)
            assert ">0.800<" in get(server).read().decode()
        response = get(server)
        assert response.headers["Refresh"] is None, "no driver: nothing will change"
        assert "stopped (no driver)" in response.read().decode()
    assert ">0.700<" in first
    assert ">0.800<" not in first
    assert "unfinished: waiting" in first
    assert "ASHA rungs" in first
    assert "Training of trial_000" in first


def test_a_runs_page_has_its_curves(tmp_path: Path) -> None:
    run = store_run(str(tmp_path / "first"), 0.5, 0.6)
    with serve(run.uri) as server:
        page = get(server).read().decode()
    assert "Jaccard over epochs" in page
    assert "2 of 4 epochs" in page


def test_before_the_first_validation_there_is_a_page_too(tmp_path: Path) -> None:
    study, _ = store_study(str(tmp_path / "study"), "search.trials=2")
    with serve(study.uri) as server:
        page = get(server).read().decode()
    assert "0 of 2 trials ended" in page


def test_only_this_machines_requests_for_the_page_are_answered(study: Study) -> None:
    with serve(study.uri) as server:
        assert get(server, host="evil.example:80").status == 404
        assert get(server, "/etc/passwd").status == 404


def test_a_store_that_fails_is_a_503_that_reloads_itself(study: Study) -> None:
    with serve(study.uri) as server:
        storage.write_bytes(f"{study.uri}/study.json", b"torn")
        response = get(server)
        assert (response.status, response.headers["Refresh"]) == (503, str(REFRESH_INTERVAL_S))
        assert "study.json: not a study" in response.read().decode()


def test_a_port_in_use_is_named(study: Study) -> None:
    with serve(study.uri) as server, pytest.raises(UsageError, match="give another port"):
        LiveServer(ProgressReader(study.uri), server.server_port)


def test_live_writes_no_report(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", study.uri, "--live", "--out", "x.html"]) == 2
    assert "leave --out and --records away" in capsys.readouterr().err
