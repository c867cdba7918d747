"""Programs that run under this one and never outlive it, and free ports for them to listen on."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from infra.local import supervise
from segan.errors import SeganError

# Linux gives outgoing connections ports from 32768 upwards: a port up there can be taken between
# our looking and the program's listening. Ray's workers by default take 10002 to 19999. SeaweedFS
# also listens 10000 above each of its ports. So: a port and its twin from what is left.
PORT_RANGE = range(20_000, 22_700)
GRPC_PORT_OFFSET = 10_000
LOG_TAIL_LINES = 30
START_ATTEMPTS = 3

T = TypeVar("T")


class StartError(SeganError):
    """A program of the local infrastructure did not start."""


class EarlyExitError(StartError):
    """It ended while starting, perhaps because another program was quicker to take its port."""


@dataclass(frozen=True)
class SupervisedProcess:
    """A running program. `pid` is its own; its end is also the end of all that it started."""

    name: str
    pid: int
    log: Path
    supervisor: subprocess.Popen[str]

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait for `ready()`, or raise with the last lines of the program's log."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check_running()
            if time.monotonic() > deadline:
                raise StartError(
                    f"{self.name} is not ready after {seconds:g} s. {self._log_tail()}"
                )
            time.sleep(0.1)
        self.check_running()  # or else what answered was somebody else's

    def check_running(self) -> None:
        """Raise with the last lines of the program's log if it has ended."""
        if self.supervisor.poll() is not None:
            raise EarlyExitError(f"{self.name} has ended. {self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f"The end of {self.log}:", *lines])


@contextmanager
def run_supervised(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str], grace_period_s: float
) -> Iterator[SupervisedProcess]:
    """Run `command` in `folder`, its output in a log there, and end all its processes afterwards.

    `grace` is how many seconds it has between SIGTERM and SIGKILL. The supervisor ends it too
    when this process dies, be it by SIGKILL: see `infra.local.supervise`.
    """
    name = Path(command[0]).name
    log = folder / f"{name}.log"
    with log.open("w") as output:
        supervisor = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                supervise.__file__,
                str(os.getpid()),
                str(grace_period_s),
                *command,
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env=dict(environment),
            start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on, in good order
            text=True,
        )
    with supervisor:
        try:
            assert supervisor.stdout is not None
            pid = supervisor.stdout.readline()
            if not pid:
                raise StartError(f"{command[0]} could not be run: see {log}")
            yield SupervisedProcess(name, int(pid), log, supervisor)
        finally:
            _stop(supervisor, grace_period_s)


def _stop(supervisor: subprocess.Popen[str], grace_period_s: float) -> None:
    supervisor.send_signal(signal.SIGTERM)
    try:
        supervisor.wait(grace_period_s + 10)
    except subprocess.TimeoutExpired:  # something cannot even be killed: do not hang with it
        supervisor.kill()


def retry_start(start: Callable[[], T]) -> T:
    """Start something, again with other ports if it ended early."""
    for _ in range(START_ATTEMPTS - 1):
        with suppress(EarlyExitError):
            return start()
    return start()


def find_executable(name: str) -> str:
    """The path of a program that comes with a Python package, here or on the PATH."""
    search_path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    found = shutil.which(name, path=search_path)
    if found is None:
        raise StartError(
            f"no program {name!r} is installed: in the checkout, run pip install -e '.[local]'"
        )
    return found


def free_ports(count: int) -> list[int]:
    """Ports, all different, on which nobody listens, and nobody on their twins either."""
    ports: list[int] = []
    for port in random.sample(PORT_RANGE, len(PORT_RANGE)):
        if len(ports) == count:
            return ports
        if _is_free(port) and _is_free(port + GRPC_PORT_OFFSET):
            ports.append(port)
    raise StartError(
        f"there are no {count} free ports between {PORT_RANGE.start} and {PORT_RANGE.stop}"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As a server does: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # Every address at once finds a listener on any of them, and as this one never
            # listens it opens nothing.
            probe.bind(("", port))
        except OSError:
            return False
    return True
