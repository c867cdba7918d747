"""Checkpoints that are written in the background: kills at any moment, and a slow store."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from infra.local.s3 import S3Server
from segan import storage
from segan.runs.checkpoint import Checkpoint
from segan.runs.run import Run
from segan.training.launch import train_local
from segan.training.resume import find_resume_checkpoint
from segan.training.trainer import Callbacks, TrainingProgress
from tests.environment import temporary_environment
from tests.fault_proxy import Fault, run_fault_proxy
from tests.storage.disk import Disk
from tests.storage.disk import disk as disk
from tests.training.conftest import records as records
from tests.training.helpers import BATCH_SIZE, configure, metric_lines, same_weights

KILLS, POWER_CUTS = 20, 10
EPOCHS = 12
TIMEOUT_S = 300
# A disk so slow that a checkpoint takes as long as several steps: else few kills would hit one.
SYNC_SECONDS = 0.03


def train_on_a_slow_disk(records_uri: str, run_uri: str, saved: Connection) -> None:
    """Runs in a process of its own, which is killed; sends the samples of each checkpoint."""
    real_fsync, real_save = os.fsync, Run.save_checkpoint

    def slow_fsync(descriptor: int) -> None:
        time.sleep(SYNC_SECONDS)
        real_fsync(descriptor)

    def save_checkpoint(run: Run, *arguments: Any) -> Checkpoint:
        checkpoint = real_save(run, *arguments)
        saved.send(checkpoint.samples)
        return checkpoint

    os.fsync, Run.save_checkpoint = slow_fsync, save_checkpoint  # type: ignore[method-assign]
    config = configure(records_uri, training={"checkpoint_every_steps": 1, "epochs": EPOCHS})
    train_local(config, Run(run_uri))


def incomplete_checkpoints(run: Run) -> set[str]:
    files = storage.list_files(f"{run}/checkpoints")
    folders = {file.name.split("/")[0] for file in files}
    return folders - {checkpoint.name for checkpoint in run.checkpoints()}


class Training:
    """A training in a process, which is started again after each fault."""

    def __init__(self, records_uri: str, run: Run):
        self.run, self.records_uri = run, records_uri
        self.rng, self.saved = random.Random(0), 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["segan.training.launch"])

    def start(self) -> None:
        self._receiver, sender = self._context.Pipe(duplex=False)
        arguments = (self.records_uri, self.run.uri, sender)
        self.process = self._context.Process(target=train_on_a_slow_disk, args=arguments)
        self.process.start()
        sender.close()

    def wait_for_a_random_moment(self) -> None:
        """Waits for a new checkpoint, and then for up to two more."""
        assert self._receiver.poll(TIMEOUT_S), "no checkpoint came"
        time.sleep(self.rng.uniform(0, 2 * 8 * SYNC_SECONDS))

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        with contextlib.suppress(EOFError):
            while True:
                self.saved = self._receiver.recv()

    def check_nothing_is_lost(self) -> None:
        found = find_resume_checkpoint(self.run, pytest.fail)
        assert found is not None
        assert found.samples >= self.saved, "a checkpoint that was complete is lost"

    def finish(self) -> None:
        self.start()
        self.process.join(TIMEOUT_S)
        assert self.process.exitcode == 0

    def assert_same(self, undisturbed: Run) -> None:
        assert same_weights(self.run, undisturbed)
        assert metric_lines(self.run) == metric_lines(undisturbed)
        one, other = self.run.latest_checkpoint(), undisturbed.latest_checkpoint()
        assert one is not None
        assert other is not None
        assert one.files == other.files


@pytest.fixture
def undisturbed(records: str, tmp_path: Path) -> Run:
    run = Run(str(tmp_path / "undisturbed"))
    train_local(configure(records, training={"epochs": EPOCHS}), run)
    return run


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
def test_kills_at_random_moments_of_saves(records: str, undisturbed: Run, tmp_path: Path) -> None:
    training, within_a_save = Training(records, Run(str(tmp_path / "killed"))), 0
    for _ in range(KILLS):
        training.start()
        training.wait_for_a_random_moment()
        training.kill()
        within_a_save += bool(incomplete_checkpoints(training.run))
        training.check_nothing_is_lost()
    training.finish()
    print(f"{KILLS} kills, {within_a_save} of them left a checkpoint incomplete")
    assert within_a_save > 0
    training.assert_same(undisturbed)
    assert incomplete_checkpoints(training.run) == set()


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
def test_power_cuts_at_random_moments_of_saves(
    records: str,
    undisturbed: Run,
    disk: Disk,
) -> None:
    training = Training(records, Run(f"{disk.folder}/run"))
    for _ in range(POWER_CUTS):
        training.start()
        training.wait_for_a_random_moment()
        disk.cut_power()
        training.kill()
        disk.restart()
        training.check_nothing_is_lost()
    training.finish()
    training.assert_same(undisturbed)


@pytest.mark.integration
def test_a_slow_store_delays_no_step_until_the_next_checkpoint(
    s3: S3Server,
    bucket: str,
    records: str,
    tmp_path: Path,
) -> None:
    """The store takes nothing until the step before the next checkpoint has ended.

    Epochs end with steps 6, 11 and 16. By then all steps up to the next checkpoint must have been
    made: if one of them waited for the store, the training would hang.
    """
    run, undisturbed = Run(f"{bucket}/run"), Run(str(tmp_path / "undisturbed"))
    train_local(configure(records), undisturbed)
    (tmp_path / "proxy").mkdir()
    with run_fault_proxy(s3.endpoint, tmp_path / "proxy") as proxy:
        slow = Fault(
            "slow", None, request_prefix=f"PUT /{bucket[5:]}/run/checkpoints", bytes_per_second=1e6
        )
        held = Fault("hang", None, request_prefix=slow.request_prefix, seconds=TIMEOUT_S)
        complete: dict[int, list[str]] = {}

        def on_step_end(progress: TrainingProgress) -> None:
            step = progress.samples // BATCH_SIZE
            complete[step] = [checkpoint.name for checkpoint in run.checkpoints()]
            if step == 10:
                proxy.clear()
                proxy.inject(slow)

        with temporary_environment({"AWS_ENDPOINT_URL": proxy.endpoint}):
            proxy.inject(held)
            train_local(configure(records), run, Callbacks(on_step_end))
    assert complete[10] == []
    assert "epoch_00001" in complete[12]
    assert same_weights(run, undisturbed)
    assert metric_lines(run) == metric_lines(undisturbed)
