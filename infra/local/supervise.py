"""Runs a command so that none of its processes outlives the process that started it.

Run by path, so that it imports psutil and the standard library only: ``python -I supervise.py
PARENT GRACE_PERIOD COMMAND...``. As a Linux "child subreaper" it adopts every orphan below it, so
everything that the command starts, in whatever session, stays among its descendants. It ends all of
them on SIGTERM, when the process PARENT dies for any reason, and when the command itself ends.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PARENT_POLL_INTERVAL_S = 0.2
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """Sets an attribute of this process; raises OSError if the kernel refuses."""
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def descendants(ancestor: int) -> list[int]:
    """The ids of all processes below `ancestor`."""
    return [process.pid for process in psutil.Process(ancestor).children(recursive=True)]


def reap() -> set[int]:
    """Waits for the children that have ended, adopted orphans among them; returns their ids."""
    ended: set[int] = set()
    with suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            ended.add(pid)
    return ended


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Starts the command in a session of its own.

    Keep a reference to the result: a `Popen` that is garbage-collected reaps its process.
    """

    def preexec() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        # In case this process is ended by a SIGKILL, which it cannot handle.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=preexec,
    )


def wait_for_exit(command: int, parent: int) -> bool:
    """Waits until the command ends (True), or the parent dies or a signal arrives (False)."""
    while os.getppid() == parent:
        received = signal.sigtimedwait(SIGNALS, PARENT_POLL_INTERVAL_S)
        if command in reap():
            return True
        if received is not None and received.si_signo != signal.SIGCHLD:
            return False
    return False


def terminate(command: int, grace_period_s: float) -> None:
    """Sends SIGTERM to the command and waits for its end, at most `grace_period_s`.

    Only the command gets the signal, not its process group: Ray's first process ends the others in
    order. If all of them got it, they would wait for each other forever.
    """
    os.kill(command, signal.SIGTERM)
    deadline = time.monotonic() + grace_period_s
    while command not in reap() and time.monotonic() < deadline:
        time.sleep(0.05)


def kill_descendants() -> None:
    """Kills all processes below this one."""
    # Repeated, for processes that are forked between the listing and the signal.
    while remaining := descendants(os.getpid()):
        for pid in remaining:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        reap()


def main(arguments: list[str]) -> None:
    parent, grace_period_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    # Blocked signals, which are waited for instead, cannot interrupt the clean-up.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    process = start(command)
    print(process.pid, flush=True)
    if not wait_for_exit(process.pid, parent):
        terminate(process.pid, grace_period_s)
    kill_descendants()


if __name__ == "__main__":
    main(sys.argv[1:])
