"""`segan train --local` with two ranks, as two processes of which rank 0 is the command itself."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from segan.runs.run import Run
from segan.training.trainer import Trainer

pytestmark = pytest.mark.timeout(400)

OVERRIDES = (
    "network.width=2",
    "augment.crop=64",
    "training.batch_size=2",
    "training.epochs=100000",
    "training.validate_every_epochs=1000",
    "training.checkpoint_every_steps=1",
    "evaluation.report=false",
    "cluster.workers=2",
    "cluster.threads_per_worker=1",
)


def start(
    run: Run, records: str, *more: str, program: Sequence[str] = ("-m", "segan")
) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a shell starts it."""
    words = ["train", run.uri, "--local", f"data.records={records}", *OVERRIDES, *more]
    return subprocess.Popen(
        [sys.executable, *program, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def other_ranks(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def wait_for_checkpoint(run: Run, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not run.checkpoints():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_a_debugger_stops_in_rank_zero_and_gets_what_is_typed(records: str, tmp_path: Path) -> None:
    run = Run(f"{tmp_path}/run")
    file, line = inspect.getsourcefile(Trainer), inspect.getsourcelines(Trainer._train_step)[1]
    pdb = ["-m", "pdb", "-c", f"break {file}:{line + 1}", "-c", "continue", "-m", "segan"]
    process = start(run, records, "training.epochs=1", program=pdb)
    typed = "p 'rank', rank(), world_size()\np 'position', batch.position\nclear 1\ncontinue\nq\n"
    stdout, stderr = process.communicate(typed, timeout=350)
    assert "('rank', 0, 2)" in stdout, (stdout, stderr)
    assert "('position', 0)" in stdout
    assert run.latest_checkpoint() is not None, (stdout, stderr)


@pytest.mark.slow
def test_a_killed_rank_is_named_and_ctrl_c_stops_both(records: str, tmp_path: Path) -> None:
    run = Run(f"{tmp_path}/run")
    with start(run, records) as process:
        wait_for_checkpoint(run, process)
        (other,) = other_ranks(process)
        other.kill()
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (1, ""), stderr
    assert stderr.splitlines()[-1].startswith("segan: rank 1 was ended by SIGKILL; ")
    before = run.latest_checkpoint()
    assert before is not None
    with start(run, records) as process:
        while (latest := run.latest_checkpoint()) is None or latest.samples == before.samples:
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        (other,) = other_ranks(process)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "with a checkpoint; run the same command to resume" in stderr.splitlines()[-1]
    assert not other.is_running()
