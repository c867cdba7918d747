"""Processes that hold a lease, controlled by the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass

PROGRAM = """
import sys, time
from segan.errors import SeganError
from segan.storage.lease import LeaseConfig, hold_lease

config = LeaseConfig(*map(float, sys.argv[1:]))
for line in sys.stdin:
    uri, moment = line.split()
    while time.monotonic() < float(moment):
        pass
    try:
        with hold_lease(uri, config):
            print("held", flush=True)
            if sys.stdin.readline() == "fail\\n":
                raise RuntimeError("as requested")
        print("released", flush=True)
    except (SeganError, RuntimeError, KeyboardInterrupt) as error:
        print(type(error).__name__, " ".join(str(error).split()), flush=True)
"""


@dataclass
class Driver:
    """A process that acquires, holds and releases leases."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, *timing: float) -> Driver:
        """Starts a process; `timing` are the values of its LeaseConfig."""
        command = [sys.executable, "-c", PROGRAM, *map(str, timing)]
        pipe = subprocess.PIPE
        return cls(
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        )

    def send(self, *values: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, values)) + "\n")
        self.process.stdin.flush()

    def read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def hold(self, uri: str) -> str:
        self.send(uri, 0)
        return self.read_line()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
