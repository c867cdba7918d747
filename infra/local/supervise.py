"""Stands over one command so that nothing of it outlives the process that asked for it.

Run by path, alone and with the standard library only: ``python -I supervise.py PARENT GRACE
COMMAND...``. It adopts every orphan below it (a Linux "child subreaper"), so whatever the command
starts, in a session of its own or not, stays in this process's tree and is found there. It ends
the whole tree on SIGTERM, when PARENT dies by whatever cause, and when the command itself ends.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PARENT_POLL_INTERVAL_S = 0.2
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """Set one attribute of this process, or raise."""
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def descendants(ancestor: int) -> list[int]:
    """Every process below `ancestor`, found in one reading of /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue  # it ended while we were reading
        # The name, second in the line, is in brackets and may hold anything, also brackets.
        parent = int(stat.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry.name))

    def walk(pid: int) -> Iterator[int]:
        for child in children.get(pid, []):
            yield child
            yield from walk(child)

    return list(walk(ancestor))


def reap() -> set[int]:
    """Collect what has ended, the command or an adopted orphan."""
    ended: set[int] = set()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.add(pid)


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start the command in a session and process group of its own.

    Keep what this returns: a `Popen` that is dropped reaps its process behind our back.
    """

    def preexec() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        # For the one end that this process cannot handle: a SIGKILL of its own.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=preexec,
    )


def wait_for_exit(command: int, parent: int) -> bool:
    """Wait for the command's end, the parent's death or a signal; say whether it was the first."""
    while os.getppid() == parent:
        received = signal.sigtimedwait(SIGNALS, PARENT_POLL_INTERVAL_S)
        if command in reap():
            return True
        if received is not None and received.si_signo != signal.SIGCHLD:
            return False
    return False


def terminate(command: int, grace_period_s: float) -> None:
    """Send SIGTERM and wait for the command's end, but no longer than `grace` seconds.

    The command alone is asked, not its group: it is for Ray's first process to end the others one
    after another. Where all of them are asked at once, they wait for each other for ever.
    """
    os.kill(command, signal.SIGTERM)
    deadline = time.monotonic() + grace_period_s
    while command not in reap() and time.monotonic() < deadline:
        time.sleep(0.05)


def kill_descendants() -> None:
    """Kill all that is left below this process."""
    # Again and again: what is forked between the reading and the signal is caught by the next.
    while remaining := descendants(os.getpid()):
        for pid in remaining:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        reap()


def main(arguments: list[str]) -> None:
    """Stand over the command from its start to the end of its last process."""
    parent, grace, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    # Blocked and waited for, signals cannot strike halfway through the ending of the tree.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    process = start(command)
    print(process.pid, flush=True)
    if not wait_for_exit(process.pid, parent):
        terminate(process.pid, grace)
    kill_descendants()


if __name__ == "__main__":
    main(sys.argv[1:])
