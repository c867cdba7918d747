"""Calls of functions in small processes with limits of CPU time and memory.

For work on content of unknown origin inside of C code, which cannot be interrupted otherwise. The
limits are the kernel's: it ends the process, whatever that is doing.
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# Of the interpreter, its libraries and their threads, before any work.
BASE_MEMORY_BYTES = 512 * 2**20


class LimitExceededError(Exception):
    """The process of a call was ended by its limit of CPU time, or for lack of memory."""


class Sandbox:
    """Processes that run one call each at a time; thread-safe.

    Args:
        processes: at most this many calls run at once, others wait.
        cpu_seconds: that a call may take, over all threads of its process.
        memory_bytes: that a call may allocate.
    """

    def __init__(self, processes: int, cpu_seconds: float, memory_bytes: int):
        self._limits = (cpu_seconds, memory_bytes + BASE_MEMORY_BYTES)
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(None)  # started by the first call

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns `function(*arguments)`.

        Args:
            function: of a module, which the process imports; arguments and result are pickled.

        Raises:
            LimitExceededError: the call exceeded a limit; its process was ended.
            Exception: whatever `function` raises.
        """
        process = self._idle.get()
        try:
            if process is None:
                process = _Process(*self._limits)
            is_error, result = process.call(function, arguments)
        except LimitExceededError:
            process = None
            raise
        finally:
            self._idle.put(process)
        if is_error:
            raise result
        return result

    def close(self) -> None:
        """Ends the processes; no call may be running."""
        with contextlib.suppress(queue.Empty):
            while True:
                if process := self._idle.get_nowait():
                    process.end()


class _Process:
    def __init__(self, cpu_seconds: float, memory_bytes: int):
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", __name__, str(number)]
            self.process = subprocess.Popen(  # noqa: S603
                [*command, str(cpu_seconds), str(memory_bytes)],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.connection = Connection(ours.detach())

    def call(self, function: Callable[..., Any], arguments: Any) -> tuple[bool, Any]:
        try:
            self.connection.send((function, arguments))
            result: tuple[bool, Any] = self.connection.recv()
        except (EOFError, OSError):
            code = self.end()
            reason = "CPU time" if code == -signal.SIGPROF else "memory"
            raise LimitExceededError(f"more {reason} than allowed") from None
        return result

    def end(self) -> int:
        self.connection.close()  # the process ends at the end of its input
        return self.process.wait()


def _serve(number: int, cpu_seconds: float, memory_bytes: int) -> None:
    """Runs calls until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    with Connection(number) as connection, contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            function, arguments = connection.recv()
            # SIGPROF ends the process, also within C code, since nothing handles it.
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            try:
                result: tuple[bool, Any] = (False, function(*arguments))
            except Exception as error:
                result = (True, error)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send(result)
            del function, arguments, result


if __name__ == "__main__":
    _serve(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
