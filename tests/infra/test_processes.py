"""Supervised programs end with all processes they started, however they or their parents end."""

import os
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from infra.local.processes import (
    GRPC_PORT_OFFSET,
    PORT_RANGE,
    EarlyExitError,
    StartError,
    SupervisedProcess,
    find_executable,
    free_ports,
    retry_start,
    run_supervised,
)
from infra.local.supervise import descendants
from tests.infra.process_utils import all_exited, child_process, read_line, wait_for

# Ignores SIGTERM; has a child in its own session, whose child becomes an orphan.
SIGTERM_IGNORING_SCRIPT = """
trap '' TERM
setsid sh -c 'trap "" TERM; (sleep 1000 &) ; sleep 1000' &
echo running
sleep 1000
"""

PARENT_PROGRAM = """
import os, sys, time
from pathlib import Path
from infra.local.processes import run_supervised

command = ["sleep", "1000"]
with run_supervised(command, folder=Path(sys.argv[1]), environment=os.environ,
    grace_period_s=1) as program:
    print(program.supervisor.pid, program.pid, flush=True)
    time.sleep(1000)
"""


def start(
    folder: Path, script: str, grace_period_s: float = 0.2
) -> AbstractContextManager[SupervisedProcess]:
    return run_supervised(
        ["sh", "-c", script], folder=folder, environment=os.environ, grace_period_s=grace_period_s
    )


def test_processes_that_ignore_sigterm_are_killed(tmp_path: Path) -> None:
    with start(tmp_path, SIGTERM_IGNORING_SCRIPT) as program:
        assert wait_for(lambda: len(descendants(program.supervisor.pid)) == 5)
        pids = [program.supervisor.pid, *descendants(program.supervisor.pid)]
    assert all_exited(pids)


def test_a_program_that_ends_on_sigterm_is_not_waited_for(tmp_path: Path) -> None:
    with start(tmp_path, "exec sleep 1000", grace_period_s=1e6) as program:
        pass  # waiting would take longer than a test may
    assert all_exited([program.pid])


def test_the_children_of_a_program_that_ends_are_killed(tmp_path: Path) -> None:
    with start(tmp_path, "setsid sleep 1000 & echo $! > child", grace_period_s=60) as program:
        assert wait_for(lambda: program.supervisor.poll() is not None)
        assert all_exited([int((tmp_path / "child").read_text())])


@pytest.mark.parametrize("victim", ["parent", "supervisor"])
def test_nothing_outlives_a_sigkill(tmp_path: Path, victim: str) -> None:
    command = [sys.executable, "-c", PARENT_PROGRAM, str(tmp_path)]
    with child_process(command, os.environ) as parent:
        supervisor, program = map(int, read_line(parent).split())
        os.kill({"parent": parent.pid, "supervisor": supervisor}[victim], signal.SIGKILL)
        assert wait_for(lambda: all_exited([program, supervisor]))


def test_a_program_that_does_not_start_reports_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(EarlyExitError, match="the disk is on fire"),
        start(tmp_path, "echo the disk is on fire; exit 1") as program,
    ):
        program.wait_until(lambda: False, seconds=10)


def test_a_program_that_does_not_become_ready_times_out(tmp_path: Path) -> None:
    with (
        pytest.raises(StartError, match="sh is not ready after"),
        start(tmp_path, "sleep 1000") as program,
    ):
        program.wait_until(lambda: False, seconds=0.3)


def test_a_missing_program_is_reported() -> None:
    with pytest.raises(StartError, match="no-such-program"):
        find_executable("no-such-program")


def test_only_an_early_exit_is_retried() -> None:
    outcomes: list[StartError | str] = [
        EarlyExitError("taken"),
        EarlyExitError("taken"),
        "started",
    ]

    def attempt() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, StartError):
            raise outcome
        return outcome

    assert retry_start(attempt) == "started"
    outcomes[:] = [StartError("broken"), "started"]
    with pytest.raises(StartError, match="broken"):
        retry_start(attempt)


def test_free_ports_are_distinct_and_below_the_ephemeral_range() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    lowest_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(port in PORT_RANGE and port + GRPC_PORT_OFFSET < lowest_ephemeral for port in ports)
