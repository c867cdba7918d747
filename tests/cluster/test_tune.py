"""Studies with Ray Tune: trials are Ray Train runs, and leave no actors or placement groups."""

from __future__ import annotations

import json
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
from ray_jobs.tuning.scheduler import start_stop_decisions
from ray_jobs.tuning.study import run_study
from segan.config import Config
from segan.data.records.format import read_manifest
from segan.evaluation.compare import compare_variants
from segan.runs.metrics_file import write_metrics
from segan.runs.study import Study
from segan.runs.trial import Trial, TrialStatus

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

STUDY = (
    "search.trials=4",
    "search.reduction_factor=2",
    "training.epochs=4",
    "training.log_every_steps=1",
    "cluster.cpus_per_worker=0.5",
)


def alive_actors() -> dict[str, str]:
    """The class names of all actors that are not dead, by id."""
    return {a.actor_id: a.class_name for a in list_actors(limit=1000) if a.state != "DEAD"}


def leaked_resources(before: dict[str, str]) -> dict[str, Any]:
    """Placement groups, reserved CPUs and actors of the study that still exist."""
    groups = [g for g in list_placement_groups(limit=1000) if g.state != "REMOVED"]
    actors = {name for actor_id, name in alive_actors().items() if actor_id not in before}
    used = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
    return {"groups": len(groups), "actors": actors - RAY_SYSTEM_ACTORS, "cpus": round(used, 3)}


def wait_for_cleanup(before: dict[str, str], seconds: float = 90) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while any(leaked_resources(before).values()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return leaked_resources(before)


NO_LEAKS = {"groups": 0, "actors": set(), "cpus": 0}
# Ray starts one of each per cluster.
RAY_SYSTEM_ACTORS = {"_StatsActor", "TrainStateActor", "_AutoscalingCoordinatorActor"}


DRIVER_PROGRAM = """
import sys
from ray_jobs.cluster.connect import connect
from ray_jobs.tuning.study import run_study
from segan.config import parse_config
from segan.runs.study import Study
import json
connect()
on_validation = lambda trial, metrics, should_continue: print(
    json.dumps([trial, metrics["epoch"], should_continue]), flush=True
)
run_study(parse_config(json.loads(sys.argv[2])), Study(sys.argv[1]), on_validation)
"""
Validation = tuple[str, int, bool]  # the trial, its epoch and whether it continues


def run_and_kill_driver(study: Study, config: Config) -> list[Validation]:
    """Runs a study until a trial has two epochs, and kills its driver; returns what it said."""
    command = [sys.executable, "-c", DRIVER_PROGRAM, study.uri, config.model_dump_json()]
    validations: list[Validation] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if line.startswith('["trial_'):  # Ray prints warnings there
                validations.append(tuple(json.loads(line)))
                if validations[-1][1] == 2:
                    driver.kill()
    return validations


def kill_actor(class_name: str) -> bool:
    """Kills the first such actor that runs; returns whether there is one."""
    for actor in list_actors(limit=1000, filters=[("state", "=", "ALIVE")]):
        if actor.class_name == class_name:
            os.kill(actor.pid, signal.SIGKILL)
            return True
    return False


def stopped(validations: list[Validation]) -> set[str]:
    return {trial for trial, _, should_continue in validations if not should_continue}


def checkpoint_epochs(trial: Trial) -> int:
    latest = trial.run.latest_checkpoint()
    return latest.info.epochs if latest else 0


@pytest.mark.slow
def test_a_study_resumes_after_its_driver_was_killed_and_prunes_trials(
    bucket: str, make_config: Callable[..., Config]
) -> None:
    config = make_config(*STUDY, "search.max_concurrent_trials=2")
    study, actors = Study(f"{bucket}/study"), alive_actors()
    validations = run_and_kill_driver(study, config)
    before = {trial.name: checkpoint_epochs(trial) for trial in study.trials()}
    assert any(before.values())
    resumed: list[Validation] = []
    to_kill = {"StopDecisions", "ImplicitFunc"}  # the latter is a trial; Ray and Tune restart both

    def on_validation(trial: str, metrics: dict[str, Any], should_continue: bool) -> None:
        resumed.append((trial, metrics["epoch"], should_continue))
        # At a validation that ends its trial, no other trial may run yet.
        to_kill.difference_update([name for name in to_kill if kill_actor(name)])

    run_study(config, study, on_validation)
    study.require_finished()
    assert not to_kill
    assert wait_for_cleanup(actors) == NO_LEAKS
    assert [v for v in resumed if v[1] <= before[v[0]]] == []  # nothing is done again
    for trial in study.trials():
        epochs = [line["epoch"] for line in trial.epoch_metrics()]
        assert epochs == list(range(1, len(epochs) + 1))  # none twice, none missing
    rows = study.write_leaderboard()
    assert len(rows) == 4
    assert all(row.checkpoint and row.status != "unfinished" for row in rows)
    pruned = {row.trial for row in rows if row.status == "pruned"}
    assert stopped(resumed) <= pruned
    # A trial whose driver was killed may not have learnt of its stop.
    assert pruned <= stopped(resumed) | stopped(validations)
    assert 1 <= len(pruned) <= 3  # trial_002 has the lowest score after the first epoch
    for row in rows:
        assert (row.epochs == 4) == (row.status == "finished")
        assert row.jaccard == pytest.approx(max(row.jaccard_curve), abs=1e-6)
    assert [row.jaccard for row in rows] == sorted((r.jaccard for r in rows), reverse=True)
    # A further call has nothing to do.
    run_study(config, study, lambda *_: pytest.fail("a finished trial ran again"))
    assert study.write_leaderboard() == rows


def test_any_number_of_waiting_trials_get_their_decisions() -> None:
    """More than the calls that an actor takes at a time."""
    actor = start_stop_decisions()
    try:
        waiting = [actor.get.remote(f"trial_{n}", 1) for n in range(5000)]
        assert ray.get(actor.count.remote()) == 0  # gets in although all wait
        assert not ray.get(actor.is_stopped.remote("trial_0"))
        actor.update.remote({(f"trial_{n}", 1): n % 2 == 0 for n in reversed(range(5000))})
        assert ray.get(waiting) == [n % 2 == 0 for n in range(5000)]
    finally:
        ray.kill(actor)


@pytest.mark.slow
def test_optuna_suggests_parameters_and_gets_earlier_results(
    bucket: str, make_config: Callable[..., Config]
) -> None:
    """A study that has two finished trials of three trains the third."""
    few = ("search.algorithm=optuna", "search.trials=3", "training.epochs=1")
    study = Study(f"{bucket}/study")
    config = make_config(*STUDY, *few, "performance.precision=float32")
    fingerprint = read_manifest(config.data.records).fingerprint
    search = StudyOptunaSearch(study, config.search, study.create_or_resume(config, fingerprint))
    for name, jaccard in (("trial_000", 0.2), ("trial_001", 0.3)):
        assert search.suggest(name) == {"trial": name}
        trial = study.get_trial(name)
        line = {"kind": "epoch", "epoch": 1, "samples": 1, "jaccard": jaccard}
        write_metrics(trial.run.uri, [line])
        trial.mark_done(TrialStatus.FINISHED, 1.0)
        search.on_trial_complete(name, {"jaccard": jaccard})
    trained: list[str] = []
    run_study(config, study, lambda trial, *_: trained.append(trial))
    assert trained == ["trial_002"]
    rows = study.write_leaderboard()
    assert sorted(row.trial for row in rows) == ["trial_000", "trial_001", "trial_002"]
    assert {row.status for row in rows} == {"finished"}
    assert len({row.parameters["optimizer.learning_rate"] for row in rows}) == 3
    again = StudyOptunaSearch(study, config.search, study.trials())
    assert [t.value for t in again._optuna._ot_study.trials] == [
        pytest.approx(next(r.jaccard for r in rows if r.trial == trial.name))
        for trial in study.trials()
    ]


def run_and_interrupt(after: str, *arguments: str) -> tuple[int, list[str]]:
    """The exit code and stderr of a command that gets SIGINT after a line that matches."""
    command = [sys.executable, "-m", "segan", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if re.search(after, line):
                process.send_signal(signal.SIGINT)
        return process.wait(), lines


@pytest.mark.slow
def test_an_interrupted_ablation_resumes_and_finishes_every_variant(
    bucket: str, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    pixels = "{loss.reduction: per_level, loss.level_weights: [1, 0, 0, 0, 0, 0, 0]}"
    variants = f"ablation.variants={{paper: {{}}, pixels: {pixels}}}"
    config = make_config("cluster.cpus_per_worker=0.5", "ablation.seeds=1", variants)
    study, before = Study(f"{bucket}/claims"), alive_actors()
    file = tmp_path / "config.yaml"
    file.write_text(config.model_dump_json())
    code, lines = run_and_interrupt("-seed0  epoch 1", "ablate", study.uri, "--config", str(file))
    assert (code, lines[-1]) == (130, "segan: interrupted\n")
    assert not [line for line in lines if line.startswith("scoring")]
    assert wait_for_cleanup(before) == NO_LEAKS
    run_ablation(config, study, lambda *_: None)
    assert wait_for_cleanup(before) == NO_LEAKS
    for trial in study.trials():
        assert [line["epoch"] for line in trial.epoch_metrics()] == [1, 2]
    report = compare_variants(config, study)
    assert [(row.num_ended, row.num_scored) for row in report.variants] == [(1, 1), (1, 1)]
    # A second call has nothing to do.
    run_ablation(config, study, lambda *_: pytest.fail("a trial that has ended ran again"))
