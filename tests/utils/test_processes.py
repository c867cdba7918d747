"""A pool of processes does all tasks, passes errors on and ends with its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.local.supervise import descendants
from segan.errors import SeganError, StorageError
from segan.utils import processes
from tests.infra.process_utils import all_exited, wait_for


def task_and_pid(number: int) -> tuple[int, int]:
    return number, os.getpid()


def fail(number: int) -> None:
    raise StorageError(f"task {number}: not found")


def kill_self(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_every_task_runs_once_in_another_process() -> None:
    done = dict(processes.map_unordered(task_and_pid, range(20), 2))
    assert sorted(done) == list(range(20))
    assert os.getpid() not in done.values()


@pytest.mark.parametrize(("tasks", "count"), [(range(3), 1), (range(1), 4), (range(0), 4)])
def test_one_worker_or_task_runs_in_this_process(tasks: range, count: int) -> None:
    assert list(processes.map_unordered(task_and_pid, tasks, count)) == [
        (n, os.getpid()) for n in tasks
    ]


def read_variable(name: str) -> str | None:
    return os.environ.get(name)


@pytest.mark.parametrize("value", ["first", "second", None])
def test_workers_get_the_current_environment(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the fork server was started with another environment."""
    if value:
        monkeypatch.setenv("SEGAN_TEST_VARIABLE", value)
    assert (
        list(processes.map_unordered(read_variable, ["SEGAN_TEST_VARIABLE"] * 2, 2)) == [value] * 2
    )


@pytest.mark.parametrize("count", [1, 2])
def test_errors_of_tasks_are_raised_unchanged(count: int) -> None:
    with pytest.raises(StorageError, match=r"^task \d: not found$"):
        list(processes.map_unordered(fail, range(4), count))


def test_a_killed_worker_is_reported() -> None:
    with pytest.raises(SeganError, match="a worker process was killed"):
        list(processes.map_unordered(kill_self, range(4), 2))


def test_workers_end_when_their_parent_is_killed() -> None:
    code = (
        "from segan.utils.processes import map_unordered\n"
        "from tests.utils.test_processes import sleep\n"
        "list(map_unordered(sleep, [0.0, 60.0, 60.0], 2))"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root) as first:
        try:
            # The fork server, the resource tracker and two workers.
            assert wait_for(lambda: len(descendants(first.pid)) == 4)
            started = descendants(first.pid)
        finally:
            first.kill()
    assert wait_for(lambda: all_exited(started))
