"""Processes do the work, say what went wrong, and are gone when the first one is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.local.supervise import descendants
from segan import processes
from segan.errors import SeganError, StorageError
from tests.infra.observing import none_left, wait_for


def who(number: int) -> tuple[int, int]:
    return number, os.getpid()


def fail(number: int) -> None:
    raise StorageError(f"task {number}: not found")


def end(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def nap(seconds: float) -> None:
    time.sleep(seconds)


def test_every_task_is_done_once_and_elsewhere() -> None:
    done = dict(processes.spread(who, range(20), 2))
    assert sorted(done) == list(range(20))
    assert os.getpid() not in done.values()


@pytest.mark.parametrize(("tasks", "count"), [(range(3), 1), (range(1), 4), (range(0), 4)])
def test_what_one_can_do_is_done_here(tasks: range, count: int) -> None:
    assert list(processes.spread(who, tasks, count)) == [(n, os.getpid()) for n in tasks]


def variable(name: str) -> str | None:
    return os.environ.get(name)


@pytest.mark.parametrize("value", ["first", "second", None])
def test_the_environment_is_the_one_of_now(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the server that forks was started with another one."""
    if value:
        monkeypatch.setenv("SEGAN_TEST_VARIABLE", value)
    assert list(processes.spread(variable, ["SEGAN_TEST_VARIABLE"] * 2, 2)) == [value] * 2


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_is_raised_as_it_was(count: int) -> None:
    with pytest.raises(StorageError, match=r"^task \d: not found$"):
        list(processes.spread(fail, range(4), count))


def test_an_end_from_outside_is_said() -> None:
    with pytest.raises(SeganError, match="ended from outside"):
        list(processes.spread(end, range(4), 2))


def test_none_is_left_when_the_first_one_is_killed() -> None:
    code = (
        "from segan import processes; from tests.test_processes import nap\n"
        "list(processes.spread(nap, [0.0, 60.0, 60.0], 2))"
    )
    root = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", code], cwd=root) as first:
        try:
            # The server that forks, the tracker of what is shared, and the two at work.
            assert wait_for(lambda: len(descendants(first.pid)) == 4)
            started = descendants(first.pid)
        finally:
            first.kill()
    assert wait_for(lambda: none_left(started))
