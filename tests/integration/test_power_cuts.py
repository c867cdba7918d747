"""Power cuts at random moments of ingests and of writing ensembles: nothing that was done is lost.

Those of a training are in `test_checkpoint_faults.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from segan import storage
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, ingest
from segan.data.records.format import MANIFEST, read_manifest, read_shard
from segan.data.records.shards import write_task
from segan.inference.predictor import Predictor
from segan.runs.checkpoint import open_checkpoint
from segan.runs.ensemble import ENSEMBLE_FILE
from segan.runs.run import Run
from tests.browser.server import write_test_ensemble
from tests.inference.models import save_checkpoint, small_config
from tests.storage.disk import Disk
from tests.storage.disk import disk as disk
from tests.storage.test_durable import generate

POWER_CUTS = 10
TIMEOUT_S = 100
# So slow a disk that most cuts hit a job that is not done: a job has about ten syncs.
SYNC_SECONDS = 0.05

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * TIMEOUT_S)]


def write_on_a_slow_disk(write: Callable[..., Any], done: Connection, *arguments: Any) -> None:
    """Runs in a process of its own, which is killed; sends what `write` yields."""
    real_fsync = os.fsync

    def slow_fsync(descriptor: int) -> None:
        time.sleep(SYNC_SECONDS)
        real_fsync(descriptor)

    os.fsync = slow_fsync
    for result in write(*arguments):
        done.send(result)


def ingest_in_turn(sources: Sequence[str], out: str) -> Any:
    """Replaces the records by those of the next archive, again and again."""
    options, start = IngestOptions((20, 16), 2, overwrite=True), 0
    if storage.exists(f"{out}/{MANIFEST}"):
        start = sources.index(read_manifest(out).source) + 1
    for source in itertools.islice(itertools.cycle(sources), start, None):
        yield ingest(
            open_archive(source), out, options, lambda tasks: map(write_task, tasks)
        ).fingerprint


def write_ensembles(checkpoints: Sequence[str], folder: str) -> Any:
    """Writes one ensemble after another, from the first that is not complete."""
    members = [open_checkpoint(uri) for uri in checkpoints]
    for number in itertools.count():
        if not storage.exists(f"{folder}/{number}/{ENSEMBLE_FILE}"):
            write_test_ensemble(f"{folder}/{number}", members, 0.45)
            yield number


class Writer:
    """A process that writes; what it has done is in `done`."""

    def __init__(self, write: Callable[..., Any], *arguments: Any):
        self.done: list[Any] = []
        self._rng = random.Random(0)
        self._write, self._arguments = write, arguments
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])

    def run_until_a_power_cut(self, disk: Disk) -> None:
        """Starts the process, and cuts the power within one of its next two jobs."""
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=write_on_a_slow_disk, args=(self._write, sender, *self._arguments)
        )
        process.start()
        sender.close()
        assert receiver.poll(TIMEOUT_S), "nothing was done"
        time.sleep(self._rng.uniform(0, 2 * 10 * SYNC_SECONDS))
        disk.cut_power()
        process.kill()
        process.join()
        with contextlib.suppress(EOFError):
            while True:
                self.done.append(receiver.recv())
        disk.restart()


def test_records_survive_power_cuts_at_random_moments(disk: Disk, tmp_path: Path) -> None:
    sources = [generate(tmp_path / f"archive-{seed}", seed) for seed in range(3)]
    out = f"{disk.folder}/records"
    writer = Writer(ingest_in_turn, sources, out)
    for _ in range(POWER_CUTS):
        writer.run_until_a_power_cut(disk)
        manifest = read_manifest(out)
        rows = sum(len(read_shard(out, shard)) for shard in manifest.all_shards)
        assert rows == sum(shard.num_rows for shard in manifest.all_shards) > 0
        if manifest.fingerprint != writer.done[-1]:
            # Only the next archive's, whose manifest was complete before the command ended.
            assert manifest.fingerprint not in writer.done[-2:]
    assert len(set(writer.done)) == 3


def test_ensembles_survive_power_cuts_at_random_moments(disk: Disk, tmp_path: Path) -> None:
    run = Run(f"{tmp_path}/run")
    checkpoints = [save_checkpoint(run, small_config(), epoch, 0.5, 0.4) for epoch in (1, 2, 3)]
    folder = f"{disk.folder}/ensembles"
    writer, incomplete = Writer(write_ensembles, checkpoints, folder), 0
    for _ in range(POWER_CUTS):
        writer.run_until_a_power_cut(disk)
        names = {file.name.split("/")[0] for file in storage.list_files(folder)}
        complete = {n for n in names if storage.exists(f"{folder}/{n}/{ENSEMBLE_FILE}")}
        assert {str(number) for number in writer.done} <= complete, "an ensemble is lost"
        for name in complete:
            assert len(Predictor.load(f"{folder}/{name}").members) == len(checkpoints)
        incomplete += names != complete
    print(f"{POWER_CUTS} power cuts of ensembles, {incomplete} of them left one incomplete")
    assert incomplete > 0
