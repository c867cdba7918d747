"""A run on the cluster has one driver, and a study one for all its trials."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from ray_jobs.training.driver import train
from ray_jobs.tuning.study import run_study
from segan import storage
from segan.config import Config
from segan.errors import SeganError, UsageError
from segan.runs.run import Run
from segan.runs.study import Study
from segan.storage.lease import LEASE_FILE, Holder, read_holder
from tests.drivers import Driver

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@contextmanager
def other_driver() -> Iterator[Driver]:
    driver = Driver.start()
    try:
        yield driver
    finally:
        driver.kill()


def test_while_it_trains_another_is_refused(configured: Callable[..., Config], bucket: str) -> None:
    run, said = Run(f"{bucket}/run"), list[str]()
    with other_driver() as driver:

        def observe(_: Any) -> None:
            if not said:
                said.append(driver.hold(run.uri))

        train(configured(), run, observe)
    assert said[0].startswith(f"UsageError {run.uri}: locked by process ")
    assert read_holder(run.uri) is None
    assert not storage.exists(f"{run.uri}/{LEASE_FILE}")


def test_what_another_holds_is_not_trained(configured: Callable[..., Config], bucket: str) -> None:
    with other_driver() as driver:
        assert driver.hold(f"{bucket}/held") == "held"
        pid = driver.process.pid
        with pytest.raises(UsageError, match=f"locked by process {pid} on "):
            train(configured(), Run(f"{bucket}/held"), lambda status: None)
        with pytest.raises(UsageError, match=f"locked by process {pid} on "):
            run_study(configured(), Study(f"{bucket}/held"), lambda *_: None)


def test_a_study_is_held_and_its_trials_ask_for_nothing_more(
    configured: Callable[..., Config], bucket: str
) -> None:
    study, said = Study(f"{bucket}/study"), list[str]()
    config = configured("search.trials=1", "training.epochs=1", "search.grace_period=1")
    with other_driver() as driver:

        def come() -> None:
            while not storage.exists(f"{study.uri}/trials/trial_000/run.json"):
                time.sleep(0.2)
            said.append(driver.hold(f"{study.uri}/trials/trial_000"))

        # Not in what is told of the trials: Tune pickles that, and the driver's pipes with it.
        coming = threading.Thread(target=come, daemon=True)
        coming.start()
        run_study(config, study, lambda *_: None)
        coming.join(timeout=30)
    assert said[0].startswith(f"UsageError {study.uri}: locked by process ")
    assert [file.name for file in storage.list_files(study.uri) if LEASE_FILE in file.name] == []


def test_a_driver_that_has_lost_its_run_aborts_the_training(
    configured: Callable[..., Config], bucket: str
) -> None:
    run, turns = Run(f"{bucket}/lost"), []
    other = replace(
        Holder.current_process(), lease_id="another", host="far-away", host_id="far-away"
    )

    def observe(_: Any) -> None:
        if not turns:
            turns.append(threading.get_ident())
            storage.write_bytes(f"{run.uri}/{LEASE_FILE}", json.dumps(vars(other)).encode())

    with pytest.raises(SeganError, match=r"lease lost to process .* on far-away"):
        train(configured("training.epochs=100000"), run, observe)
    assert read_holder(run.uri) == other
