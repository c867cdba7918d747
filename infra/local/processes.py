"""Programs that run as long as this process at most, and free ports for them to listen on."""

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

# Linux uses ports from 32768 upwards for outgoing connections, and may take one of them between our
# check and the program's use of it. Ray's workers use 10002 to 19999. SeaweedFS also listens on the
# port 10000 above each of its ports.
PORT_RANGE = range(20_000, 22_700)
GRPC_PORT_OFFSET = 10_000
LOG_TAIL_LINES = 30
START_ATTEMPTS = 3

T = TypeVar("T")


class StartError(SeganError):
    """A program of the local infrastructure did not start."""


class EarlyExitError(StartError):
    """The program ended while starting, perhaps because another one took its port first."""


@dataclass(frozen=True)
class SupervisedProcess:
    """A running program; when it ends, all processes that it has started are killed."""

    name: str
    pid: int
    log: Path
    supervisor: subprocess.Popen[str]

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Waits for `ready()`; raises StartError with the end of the log if it takes too long."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check_running()
            if time.monotonic() > deadline:
                raise StartError(
                    f"{self.name} is not ready after {seconds:g} s. {self._log_tail()}"
                )
            time.sleep(0.1)
        self.check_running()  # otherwise another program has made it ready

    def check_running(self) -> None:
        """Raises EarlyExitError with the end of the log if the program has ended."""
        if self.supervisor.poll() is not None:
            raise EarlyExitError(f"{self.name} has ended. {self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f"The end of {self.log}:", *lines])


@contextmanager
def run_supervised(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str], grace_period_s: float
) -> Iterator[SupervisedProcess]:
    """Runs a command in `folder` during the block, with its output in a log file there.

    All its processes are ended after the block, and also if this process dies, even by SIGKILL
    (`infra.local.supervise`).

    Args:
        grace_period_s: between SIGTERM and SIGKILL.

    Raises:
        StartError: the command cannot be executed.
    """
    name = Path(command[0]).name
    log = folder / f"{name}.log"
    supervise_command = [sys.executable, "-I", supervise.__file__, str(os.getpid())]
    with log.open("w") as output:
        supervisor = subprocess.Popen(
            [*supervise_command, str(grace_period_s), *command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C reaches this process only, which ends them in order
            text=True,
        )
    with supervisor:
        try:
            pid = supervisor.stdout.readline() if supervisor.stdout else ""
            if not pid:
                raise StartError(f"{command[0]} cannot be executed: see {log}")
            yield SupervisedProcess(name, int(pid), log, supervisor)
        finally:
            supervisor.send_signal(signal.SIGTERM)
            try:
                supervisor.wait(grace_period_s + 10)
            except subprocess.TimeoutExpired:  # a process that cannot be killed
                supervisor.kill()


def retry_start(start: Callable[[], T]) -> T:
    """Calls `start`, again with other ports if it raises EarlyExitError."""
    for _ in range(START_ATTEMPTS - 1):
        with suppress(EarlyExitError):
            return start()
    return start()


def find_executable(name: str) -> str:
    """The path of a program that a Python package has installed, or of one on the PATH."""
    search_path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    found = shutil.which(name, path=search_path)
    if found is None:
        raise StartError(
            f"program {name!r} is not installed: in the checkout, run pip install -e '.[local]'"
        )
    return found


def free_ports(count: int) -> list[int]:
    """Different ports on which nothing listens, nor on the ports `GRPC_PORT_OFFSET` above them."""
    ports: list[int] = []
    for port in random.sample(PORT_RANGE, len(PORT_RANGE)):
        if len(ports) == count:
            return ports
        if _is_free(port) and _is_free(port + GRPC_PORT_OFFSET):
            ports.append(port)
    raise StartError(f"fewer than {count} free ports in {PORT_RANGE.start}-{PORT_RANGE.stop - 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # On all addresses, to find a listener on any of them. The probe itself never listens.
            probe.bind(("", port))
        except OSError:
            return False
    return True
