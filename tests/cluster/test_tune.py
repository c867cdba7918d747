"""Studies with Ray Tune: trials are Ray Train runs, and nothing of them is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray.util.state import list_actors, list_placement_groups

from ray_jobs.tune import search
from segan.config import Config
from segan.search import Study

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

STUDY = (
    "search.trials=4",
    "search.reduction_factor=2",
    "training.epochs=4",
    "training.log_every=1",
    "cluster.cpus_per_worker=0.5",
)


def left_behind() -> dict[str, Any]:
    """What still holds a place on the cluster."""
    groups = [g for g in list_placement_groups() if g.state != "REMOVED"]
    names = ("RayTrainWorker", "TrainController", "ImplicitFunc", "SplitCoordinator")
    actors = [a for a in list_actors() if a.state == "ALIVE" and a.class_name.startswith(names)]
    used = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
    return {"groups": len(groups), "actors": len(actors), "cpus": round(used, 3)}


def settles(seconds: float = 10) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while any(left_behind().values()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left_behind()


def test_a_study_gives_trials_up_and_leaves_nothing_behind(
    bucket: str, configured: Callable[..., Config]
) -> None:
    study, told = Study(f"{bucket}/study"), []
    search(configured(*STUDY), study, lambda *word: told.append(word))
    assert settles() == {"groups": 0, "actors": 0, "cpus": 0}
    rows = study.leaderboard()
    assert len(rows) == 4
    assert all(row["checkpoint"] and row["why"] != "not over" for row in rows)
    given_up = {row["trial"] for row in rows if row["why"].startswith("given up")}
    assert given_up == {trial for trial, _, go_on in told if not go_on}
    assert 1 <= len(given_up) <= 3
    for row in rows:
        assert (row["epochs"] == 4) == (row["why"] == "finished")
        assert row["jaccard"] == max(row["jaccard_curve"])
    assert [row["jaccard"] for row in rows] == sorted((r["jaccard"] for r in rows), reverse=True)
    # Started again, there is nothing to do.
    search(configured(*STUDY), study, lambda *word: pytest.fail("a finished trial ran again"))
    assert study.leaderboard() == rows


DRIVER = """
import sys
from ray_jobs.cluster import connect
from ray_jobs.tune import search
from segan.config import parse_config
from segan.search import Study
import json
connect()
tell = lambda trial, metrics, go_on: print(trial, metrics["epoch"], flush=True)
search(parse_config(json.loads(sys.argv[2])), Study(sys.argv[1]), tell)
"""


def test_a_study_goes_on_after_its_driver_was_killed(
    bucket: str, configured: Callable[..., Config]
) -> None:
    config = configured(*STUDY, "search.concurrent=2")
    study = Study(f"{bucket}/study")
    command = [sys.executable, "-c", DRIVER, study.uri, config.model_dump_json()]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert driver.stdout is not None
    for line in driver.stdout:
        if line.split()[-1] == "2":  # some trial has two epochs behind it
            break
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {trial.name: len(trial.epochs()) for trial in study.trials()}
    assert any(before.values())
    told: list[tuple[str, int]] = []
    search(config, study, lambda trial, metrics, _: told.append((trial, metrics["epoch"])))
    rows = study.leaderboard()
    assert len(rows) == 4
    assert all(row["why"] != "not over" for row in rows)
    for trial in study.trials():
        epochs = [line["epoch"] for line in trial.epochs()]
        assert epochs == list(range(1, len(epochs) + 1))  # none twice, none missing
        redone = [epoch for name, epoch in told if name == trial.name and epoch <= before[name]]
        assert redone == []
    assert settles() == {"groups": 0, "actors": 0, "cpus": 0}
