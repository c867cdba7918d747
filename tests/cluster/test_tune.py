"""Studies with Ray Tune: trials are Ray Train runs, and nothing of them is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.state import list_actors, list_placement_groups

from ray_jobs.tuning.ablation import run_ablation
from ray_jobs.tuning.optuna import StudyOptunaSearch
from ray_jobs.tuning.study import run_study
from segan.config import Config
from segan.evaluation.compare import compare_variants
from segan.runs.study import Study, Trial

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

STUDY = (
    "search.trials=4",
    "search.reduction_factor=2",
    "training.epochs=4",
    "training.log_every_steps=1",
    "cluster.cpus_per_worker=0.5",
    # One after the other, so that who is given up is the same every time.
    "search.max_concurrent_trials=1",
)


def alive_actors() -> dict[str, str]:
    """The class of every actor that is not dead, by its id."""
    return {a.actor_id: a.class_name for a in list_actors(limit=1000) if a.state != "DEAD"}


def leaked_resources(before: dict[str, str]) -> dict[str, Any]:
    """What still holds a place on the cluster, and the study's actors that are still there."""
    groups = [g for g in list_placement_groups(limit=1000) if g.state != "REMOVED"]
    actors = {name for actor_id, name in alive_actors().items() if actor_id not in before}
    used = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
    return {"groups": len(groups), "actors": actors - RAY_SYSTEM_ACTORS, "cpus": round(used, 3)}


def wait_for_cleanup(before: dict[str, str], seconds: float = 10) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while any(leaked_resources(before).values()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return leaked_resources(before)


NO_LEAKS = {"groups": 0, "actors": set(), "cpus": 0}
# One of each for the whole cluster, started by whoever comes first.
RAY_SYSTEM_ACTORS = {"_StatsActor", "TrainStateActor", "_AutoscalingCoordinatorActor"}


def test_a_study_gives_trials_up_and_leaves_nothing_behind(
    bucket: str, configured: Callable[..., Config]
) -> None:
    study, told, before = Study(f"{bucket}/study"), [], alive_actors()
    run_study(configured(*STUDY), study, lambda *word: told.append(word))
    assert wait_for_cleanup(before) == NO_LEAKS
    rows = study.write_leaderboard()
    assert len(rows) == 4
    assert all(row.checkpoint and row.status != "unfinished" for row in rows)
    given_up = {row.trial for row in rows if row.status == "pruned"}
    assert given_up == {trial for trial, _, go_on in told if not go_on}
    assert 1 <= len(given_up) <= 3
    for row in rows:
        assert (row.epochs == 4) == (row.status == "finished")
        assert row.jaccard == pytest.approx(max(row.jaccard_curve), abs=1e-6)
    assert [row.jaccard for row in rows] == sorted((r.jaccard for r in rows), reverse=True)
    # Started again, there is nothing to do.
    run_study(configured(*STUDY), study, lambda *word: pytest.fail("a finished trial ran again"))
    assert study.write_leaderboard() == rows


def test_optuna_suggests_the_points_and_is_told_of_them_again(
    bucket: str, configured: Callable[..., Config]
) -> None:
    few = ("search.algorithm=optuna", "search.trials=3", "training.epochs=1")
    study = Study(f"{bucket}/study")
    config = configured(*STUDY, *few)
    run_study(config, study, lambda *word: None)
    rows = study.write_leaderboard()
    assert sorted(row.trial for row in rows) == ["trial_000", "trial_001", "trial_002"]
    assert {row.status for row in rows} == {"finished"}
    assert len({row.parameters["optimizer.learning_rate"] for row in rows}) == 3
    again = StudyOptunaSearch(study, config.search, study.trials())
    assert [t.value for t in again._optuna._ot_study.trials] == [
        pytest.approx(next(r.jaccard for r in rows if r.trial == trial.name))
        for trial in study.trials()
    ]


DRIVER_PROGRAM = """
import sys
from ray_jobs.cluster import connect
from ray_jobs.tune import search
from segan.config import parse_config
from segan.search import Study, Trial
import json
connect()
tell = lambda trial, metrics, go_on: print(trial, metrics["epoch"], flush=True)
search(parse_config(json.loads(sys.argv[2])), Study(sys.argv[1]), tell)
"""


def checkpoint_epochs(trial: Trial) -> int:
    latest = trial.run.latest_checkpoint()
    return latest.info.epochs if latest else 0


def test_a_study_goes_on_after_its_driver_was_killed(
    bucket: str, configured: Callable[..., Config]
) -> None:
    config = configured(*STUDY, "search.max_concurrent_trials=2")
    study, actors = Study(f"{bucket}/study"), alive_actors()
    command = [sys.executable, "-c", DRIVER_PROGRAM, study.uri, config.model_dump_json()]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert driver.stdout is not None
    for line in driver.stdout:
        if re.fullmatch(r"trial_\d+ 2\n", line):  # some trial has two epochs behind it
            break
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {trial.name: checkpoint_epochs(trial) for trial in study.trials()}
    assert any(before.values())
    told: list[tuple[str, int]] = []
    run_study(config, study, lambda trial, metrics, _: told.append((trial, metrics["epoch"])))
    rows = study.write_leaderboard()
    assert len(rows) == 4
    assert all(row.status != "unfinished" for row in rows)
    for trial in study.trials():
        epochs = [line["epoch"] for line in trial.epoch_metrics()]
        assert epochs == list(range(1, len(epochs) + 1))  # none twice, none missing
        redone = [epoch for name, epoch in told if name == trial.name and epoch <= before[name]]
        assert redone == []
    assert wait_for_cleanup(actors) == NO_LEAKS


def run_and_interrupt(after: str, *words: str) -> tuple[int, list[str]]:
    """The command's exit code and all lines that it said, where Ctrl-C comes after such a line."""
    command = [sys.executable, "-m", "segan", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if re.search(after, line):
                process.send_signal(signal.SIGINT)
        return process.wait(), said


def test_an_ablation_that_is_interrupted_goes_on_to_every_variants_end(
    bucket: str, configured: Callable[..., Config], tmp_path: Path
) -> None:
    pixels = "{loss.reduction: per_level, loss.level_weights: [1, 0, 0, 0, 0, 0, 0]}"
    variants = f"ablation.variants={{paper: {{}}, pixels: {pixels}}}"
    config = configured("cluster.cpus_per_worker=0.5", "ablation.seeds=1", variants)
    study, before = Study(f"{bucket}/claims"), alive_actors()
    file = tmp_path / "config.yaml"
    file.write_text(config.model_dump_json())
    code, said = run_and_interrupt("-seed0  epoch 1", "ablate", study.uri, "--config", str(file))
    assert (code, said[-1]) == (130, "segan: interrupted\n")
    assert not [line for line in said if line.startswith("scoring")]
    assert wait_for_cleanup(before, 30) == NO_LEAKS
    run_ablation(config, study, lambda *word: None)
    assert wait_for_cleanup(before) == NO_LEAKS
    for trial in study.trials():
        assert [line["epoch"] for line in trial.epoch_metrics()] == [1, 2]
    report = compare_variants(config, study)
    assert [(row["over"], row["scored"]) for row in report["variants"]] == [(1, 1), (1, 1)]
    # Given again, there is nothing to do.
    run_ablation(config, study, lambda *word: pytest.fail("a trial that is over ran again"))
