"""A run on the cluster has one driver, and a study has one for all its trials."""

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

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@contextmanager
def other_driver() -> Iterator[Driver]:
    driver = Driver.start()
    try:
        yield driver
    finally:
        driver.kill()


def test_during_a_training_another_driver_is_refused(
    make_config: Callable[..., Config], bucket: str
) -> None:
    run, replies = Run(f"{bucket}/run"), list[str]()
    with other_driver() as driver:

        def on_progress(_: Any) -> None:
            if not replies:
                replies.append(driver.hold(run.uri))

        train(make_config(), run, on_progress)
    assert replies[0].startswith(f"UsageError {run.uri}: locked by process ")
    assert read_holder(run.uri) is None
    assert not storage.exists(f"{run.uri}/{LEASE_FILE}")


def test_a_run_held_by_another_driver_is_not_trained(
    make_config: Callable[..., Config], bucket: str
) -> None:
    with other_driver() as driver:
        assert driver.hold(f"{bucket}/held") == "held"
        pid = driver.process.pid
        with pytest.raises(UsageError, match=f"locked by process {pid} on "):
            train(make_config(), Run(f"{bucket}/held"), lambda progress: None)
        with pytest.raises(UsageError, match=f"locked by process {pid} on "):
            run_study(make_config(), Study(f"{bucket}/held"), lambda *_: None)


@pytest.mark.slow
def test_a_study_has_one_lease_for_all_trials(
    make_config: Callable[..., Config], bucket: str
) -> None:
    study, replies = Study(f"{bucket}/study"), list[str]()
    config = make_config("search.trials=1", "training.epochs=1", "search.grace_period=1")
    with other_driver() as driver:

        def try_to_hold() -> None:
            while not storage.exists(f"{study.uri}/trials/trial_000/run.json"):
                time.sleep(0.2)
            replies.append(driver.hold(f"{study.uri}/trials/trial_000"))

        # Not in the callback: Tune pickles it, and the driver's pipes cannot be pickled.
        thread = threading.Thread(target=try_to_hold, daemon=True)
        thread.start()
        run_study(config, study, lambda *_: None)
        thread.join(timeout=30)
    assert replies[0].startswith(f"UsageError {study.uri}: locked by process ")
    assert [file.name for file in storage.list_files(study.uri) if LEASE_FILE in file.name] == []


@pytest.mark.slow
def test_a_driver_that_has_lost_its_lease_aborts_the_training(
    make_config: Callable[..., Config], bucket: str
) -> None:
    run, calls = Run(f"{bucket}/lost"), []
    other = replace(
        Holder.current_process(), lease_id="another", host="far-away", host_id="far-away"
    )

    def on_progress(_: Any) -> None:
        if not calls:
            calls.append(threading.get_ident())
            storage.write_bytes(f"{run.uri}/{LEASE_FILE}", json.dumps(vars(other)).encode())

    with pytest.raises(SeganError, match=r"lease lost to process .* on far-away"):
        train(make_config("training.epochs=100000"), run, on_progress)
    assert read_holder(run.uri) == other
