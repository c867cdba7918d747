"""A training at the prompt has its run for itself: real processes, in a local folder."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from segan import storage
from segan.cli.main import main
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, ingest, local_executor
from segan.data.synthetic import generate_archive
from segan.runs.listing import describe_run, find_runs
from segan.runs.run import Run
from segan.storage.lease import LEASE_FILE, Holder, read_holder

OVERRIDES = [
    "network.width=2",
    "training.batch_size=4",
    "training.epochs=100000",
    "augment.crop=64",
]


@pytest.fixture(scope="module")
def train_args(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A training that does not end by itself, on a few drawn images."""
    folder = tmp_path_factory.mktemp("held")
    archive, records = str(folder / "archive"), str(folder / "records")
    generate_archive(
        {"train": 8, "validation": 2},
        0,
        lambda name, body: storage.write_bytes(f"{archive}/{name}", body),
        64,
    )
    ingest(open_archive(archive), records, IngestOptions((72, 64)), local_executor(1))
    run = str(folder / "runs" / "first")
    return ["train", run, "--local", f"data.records={records}", *OVERRIDES]


@pytest.fixture
def training_process(train_args: list[str]) -> Iterator[subprocess.Popen[str]]:
    """It, in a process of its own, an epoch after it began."""
    run = Run(train_args[1])
    before = len(run.metrics())
    command = [sys.executable, "-m", "segan", *train_args]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            until = time.monotonic() + 60
            while len(run.metrics()) <= before:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < until
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


def test_another_start_is_refused_and_the_first_goes_on(
    train_args: list[str],
    training_process: subprocess.Popen[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(train_args) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"segan: {train_args[1]}: locked by process {training_process.pid} on ")
    assert said.count("\n") == 1
    (summary,) = find_runs(str(Path(train_args[1]).parent))
    assert (summary.state, summary.host) == ("unfinished", socket.gethostname())
    assert describe_run(Run(train_args[1]))["summary"]["host"] == socket.gethostname()
    assert training_process.poll() is None
    training_process.send_signal(signal.SIGINT)
    assert "stopped after step" in training_process.communicate()[1].splitlines()[-1]
    assert training_process.returncode == 130
    assert read_holder(train_args[1]) is None
    assert not Path(train_args[1], LEASE_FILE).exists()


def test_after_a_kill_the_same_command_goes_on_at_once_and_stops_when_it_has_lost_the_run(
    train_args: list[str], training_process: subprocess.Popen[str]
) -> None:
    training_process.kill()
    training_process.wait()
    lease = Path(train_args[1], LEASE_FILE)
    assert Holder.current_process().host_id in lease.read_text()
    (summary,) = find_runs(train_args[1])
    assert summary.host is None
    again = [sys.executable, "-m", "segan", *train_args]
    with subprocess.Popen(again, stderr=subprocess.PIPE, text=True) as second:
        while not ((found := read_holder(train_args[1])) and found.pid == second.pid):
            assert second.poll() is None
            time.sleep(0.05)
        other = replace(
            Holder.current_process(), lease_id="another", host="far-away", pid=os.getpid()
        )
        storage.write_json(str(lease), vars(other))
        said = second.communicate(timeout=60)[1]
    assert second.returncode == 1
    assert "taking over if there is no heartbeat" not in said  # it did not wait for that
    assert f"segan: {train_args[1]}: lease lost to process {os.getpid()} on far-away at " in said
    assert read_holder(train_args[1]) == other
