"""Studies in storage: sampled parameters, resumed trials, the leaderboard."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segan import storage
from segan.config import load_config
from segan.errors import SeganError, StorageError, UsageError
from segan.runs.metrics_file import write_metrics
from segan.runs.study import Study, sample_parameters
from segan.runs.trial import TrialResult, TrialStatus


def epoch_metrics(epoch: int, jaccard: float) -> dict[str, Any]:
    """An epoch's line of metrics.jsonl, as far as a study reads it."""
    return {
        "kind": "epoch",
        "samples": 10 * epoch,
        "epoch": epoch,
        "jaccard": jaccard,
        "threshold": 0.5,
        "jaccard_at_config_threshold": jaccard - 0.1,
        "jaccard_curve": [jaccard] * 3,
    }


@given(st.integers(0, 10_000), st.integers(1, 30))
def test_random_parameters_are_a_function_of_the_seed_within_their_ranges(
    seed: int, trials: int
) -> None:
    config = load_config(None, [f"search.seed={seed}", f"search.trials={trials}"])
    points = sample_parameters(config)
    assert points == sample_parameters(config)
    assert len(points) == trials
    for point in points:
        assert 0.0005 <= point["optimizer.learning_rate"] <= 0.01
        assert 0.01 <= point["optimizer.weight_clip"] <= 0.1
        assert point["logistic.final_k"] in config.search.final_k


def test_more_trials_keep_the_first_parameters() -> None:
    few, many = (sample_parameters(load_config(None, [f"search.trials={n}"])) for n in (3, 9))
    assert many[:3] == few


def test_learning_rates_are_log_uniform() -> None:
    # Of [0.0001, 0.01] the lower half on a log scale is up to 0.001, a tenth of the plain range.
    options = ["search.trials=400", "search.learning_rate=[0.0001,0.01]"]
    rates = [p["optimizer.learning_rate"] for p in sample_parameters(load_config(None, options))]
    assert np.mean(np.array(rates) < 0.001) == pytest.approx(0.5, abs=0.08)


def test_the_grid_takes_every_final_k() -> None:
    config = load_config(None, ["search.algorithm=grid", "search.final_k=[0.2,0.3]"])
    assert sample_parameters(config) == [{"logistic.final_k": 0.2}, {"logistic.final_k": 0.3}]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("search.learning_rate=[0.01,0.001]", "the smaller first"),
        ("search.weight_clip=[0,0.1]", "two positive numbers"),
        ("search.final_k=[]", "final_k"),
        ("search.final_k=[-0.1]", "positive"),
    ],
)
def test_ranges_that_cannot_be_searched_are_refused(override: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        load_config(None, [override])


def test_a_resumed_study_keeps_its_parameters(tmp_path: Path) -> None:
    config, study = load_config(None, ["search.trials=4"]), Study(str(tmp_path / "study"))
    first = study.create_or_resume(config, "data")
    again = study.create_or_resume(
        load_config(None, ["search.trials=4", "cluster.workers=3"]), "data"
    )
    assert [(t.name, t.parameters) for t in again] == [(t.name, t.parameters) for t in first]
    assert (
        first[0].build_config(config).optimizer.weight_clip
        == first[0].parameters["optimizer.weight_clip"]
    )


def test_a_name_in_use_with_another_configuration_is_refused(tmp_path: Path) -> None:
    study = Study(str(tmp_path / "study"))
    study.create_or_resume(load_config(None, ["search.trials=4"]), "data")
    before = (tmp_path / "study/study.json").read_bytes()
    with pytest.raises(UsageError, match=r"search.trials is 4, expected 5"):
        study.create_or_resume(load_config(None, ["search.trials=5"]), "data")
    with pytest.raises(UsageError, match="fingerprint is 'data', expected 'other data'"):
        study.create_or_resume(load_config(None, ["search.trials=4"]), "other data")
    assert (tmp_path / "study/study.json").read_bytes() == before


def test_a_study_without_a_newer_key_has_its_default(tmp_path: Path) -> None:
    study, config = Study(str(tmp_path / "study")), load_config(None, ["search.trials=4"])
    first = study.create_or_resume(config, "data")
    name = tmp_path / "study/study.json"
    older = json.loads(name.read_text())
    del older["identity"]["optimizer.warmup_fraction"]
    name.write_text(json.dumps(older))
    assert [t.name for t in study.create_or_resume(config, "data")] == [t.name for t in first]
    with pytest.raises(UsageError, match=r"optimizer.warmup_fraction is 0\.0, expected 0\.1"):
        study.create_or_resume(
            load_config(None, ["search.trials=4", "optimizer.warmup_fraction=0.1"]), "data"
        )


def test_the_leaderboard_has_each_trial_at_its_best_epoch(tmp_path: Path) -> None:
    study = Study(str(tmp_path / "study"))
    poor, good, idle = study.create_or_resume(load_config(None, ["search.trials=3"]), "data")
    write_metrics(poor.run.uri, [epoch_metrics(1, 0.3), epoch_metrics(2, 0.2)])
    poor.mark_done(TrialStatus.PRUNED, 12.34, "after epoch 2")
    write_metrics(
        good.run.uri, [epoch_metrics(1, 0.4), epoch_metrics(2, 0.6), epoch_metrics(3, 0.5)]
    )
    rows = study.write_leaderboard()
    assert [row.trial for row in rows] == [good.name, poor.name, idle.name]
    assert [(row.epochs, row.best_epoch, row.jaccard) for row in rows] == [
        (3, 2, 0.6),
        (2, 1, 0.3),
        (0, 0, 0.0),
    ]
    assert [row.status for row in rows] == ["unfinished", "pruned", "unfinished"]
    assert (rows[1].reason, rows[1].seconds) == ("after epoch 2", 12.3)
    stored = json.loads((tmp_path / "study/leaderboard.json").read_text())
    assert stored == {"trials": [asdict(row) for row in rows]}


def test_a_result_is_read_back_and_can_be_cleared(tmp_path: Path) -> None:
    study = Study(str(tmp_path / "study"))
    (trial,) = study.create_or_resume(load_config(None, ["search.trials=1"]), "data")
    assert trial.result() == TrialResult(TrialStatus.UNFINISHED)
    trial.mark_done(TrialStatus.FAILED, 1.04, "the bucket is gone")
    assert trial.result() == TrialResult(TrialStatus.FAILED, "the bucket is gone", 1.0)
    trial.clear_result()
    assert trial.result() == TrialResult(TrialStatus.UNFINISHED)


def test_only_a_verdict_on_the_parameters_ends_a_trial(tmp_path: Path) -> None:
    study = Study(str(tmp_path / "study"))
    trials = study.create_or_resume(load_config(None, ["search.trials=5"]), "data")
    statuses = [TrialStatus.FINISHED, TrialStatus.PRUNED, TrialStatus.DIVERGED, TrialStatus.FAILED]
    for trial, status in zip(trials, statuses, strict=False):
        trial.mark_done(status, 1.0, f"because of {status}")
    assert [trial.result().has_ended for trial in trials] == [True, True, True, False, False]
    with pytest.raises(SeganError) as caught:
        study.require_finished()
    assert str(caught.value) == (
        f"{study.uri}: 2 of 5 trials have not ended: trial_003 (failed: because of failed), "
        "trial_004; run the same command again to go on"
    )
    for trial in trials[3:]:
        trial.mark_done(TrialStatus.FINISHED, 1.0)
    assert study.unfinished() == ""


def test_trials_that_optuna_has_not_suggested_yet_are_missing(tmp_path: Path) -> None:
    study = Study(str(tmp_path / "study"))
    config = load_config(None, ["search.trials=3", "search.algorithm=optuna"])
    assert study.create_or_resume(config, "data") == []
    (trial,) = study.add_trials([{"logistic.final_k": 1.0}])
    trial.mark_done(TrialStatus.FINISHED, 1.0)
    assert study.unfinished() == "2 of 3 trials have not ended: trial_001, trial_002"


@pytest.mark.parametrize("content", [{"why": "finished", "seconds": 1}, {"status": "gone"}, []])
def test_a_result_of_an_older_version_is_named(tmp_path: Path, content: Any) -> None:
    study = Study(str(tmp_path / "study"))
    (trial,) = study.create_or_resume(load_config(None, ["search.trials=1"]), "data")
    storage.write_json(f"{trial.run}/result.json", content)
    with pytest.raises(StorageError, match=r"result\.json: not the result of a trial, or one of"):
        trial.result()
    before = {"config": {}, "fingerprint": "data", "trials": []}
    storage.write_json(f"{study.uri}/study.json", before)
    with pytest.raises(StorageError, match=r"study\.json: not a study, or one of an older version"):
        study.trials()


def test_a_search_is_not_resumed_as_an_ablation(tmp_path: Path) -> None:
    study, config = Study(str(tmp_path / "study")), load_config(None, ["search.trials=1"])
    study.create_or_resume(config, "data")
    with pytest.raises(UsageError, match="command is 'tune', expected 'ablate'"):
        study.create_or_resume(config, "data", {"paper-seed0": {"training.seed": 0}})
