"""What a run's driver and its workers, which it cannot call, leave for each other.

Imports neither torch nor Ray Train: the board's process then starts in a fraction of the time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segan.terminal import say

if TYPE_CHECKING:
    from segan.data.batches import Plan
    from segan.interrupts import Wish

TELL_SECONDS = 0.5
STOP_SECONDS = 15.0  # for the workers to leave by themselves; `ray job stop` waits 30 for us


class Board:
    """An actor between the driver and the workers that it cannot call.

    It holds the plan that a worker group starts on, the latest status and lines for people on
    their way to the driver, and the driver's wish to stop on its way to the workers.
    """

    def __init__(self) -> None:
        self.status: dict[str, Any] | None = None
        self.lines: list[str] = []
        self.starts = 0
        self.stopping = False

    def begin(self, plan: Plan, lines: list[str]) -> None:
        """Takes the plan of the worker group that is about to start, and what there is to say."""
        self.plan = plan
        self.lines += lines

    def read_plan(self) -> Plan:
        return self.plan

    def start(self) -> int:
        """Counts a worker group that starts; returns how many came before it."""
        self.starts += 1
        return self.starts - 1

    def write(self, status: dict[str, Any]) -> bool:
        """Takes the status; returns whether the workers are to stop."""
        self.status = status
        return self.stopping

    def read(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The status, and the lines since it was last asked."""
        lines, self.lines = self.lines, []
        return self.status, lines

    def stop(self) -> None:
        self.stopping = True


def start_board() -> Any:
    """A board on the driver's node, which does not go while the driver is there."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()


@contextlib.contextmanager
def watching(board: Any, observe: Callable[[dict[str, Any]], None], wish: Wish) -> Iterator[None]:
    """Shows the workers' status in this process while the block runs, and takes them the wish."""
    over = threading.Event()

    def look() -> None:
        try:
            status, lines = ray.get(board.read.remote())
        except RayError:  # the head is away; whether it comes back is Ray Train's to find out
            return
        for line in lines:
            say(line)
        if status is not None:
            observe(status)

    def watch() -> None:
        told = aborted = False
        while not over.wait(TELL_SECONDS):
            if wish() and not told:
                board.stop.remote()
                told = True
            if wish.age > STOP_SECONDS and not aborted:
                os.kill(os.getpid(), signal.SIGINT)  # Ray Train then aborts
                aborted = True
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        look()
    finally:
        over.set()
        watcher.join(timeout=5)
