"""What a run's driver and its workers, which it cannot call, leave for each other.

Imports neither torch nor Ray Train: the board's process then starts in a fraction of the time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from segan.data.stream.batches import StreamSpec
    from segan.utils.signals import StopRequest

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.5
STOP_TIMEOUT_S = 15.0  # for the workers to leave by themselves; `ray job stop` waits 30 for us


class RunCoordinator:
    """An actor between the driver and the workers that it cannot call.

    It holds the plan that a worker group starts on, the latest status and lines for people on
    their way to the driver, and the driver's wish to stop on its way to the workers.
    """

    def __init__(self) -> None:
        self.progress: dict[str, Any] | None = None
        self.messages: list[str] = []
        self.num_starts = 0
        self.stop_requested = False

    def set_stream_spec(self, stream_spec: StreamSpec, messages: list[str]) -> None:
        """Takes the plan of the worker group that is about to start, and what there is to say."""
        self.stream_spec = stream_spec
        self.messages += messages

    def get_stream_spec(self) -> StreamSpec:
        return self.stream_spec

    def register_start(self) -> int:
        """Counts a worker group that starts; returns how many came before it."""
        self.num_starts += 1
        return self.num_starts - 1

    def update_progress(self, progress: dict[str, Any]) -> bool:
        """Takes the status; returns whether the workers are to stop."""
        self.progress = progress
        return self.stop_requested

    def poll(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The status, and the lines since it was last asked."""
        lines, self.messages = self.messages, []
        return self.progress, lines

    def request_stop(self) -> None:
        self.stop_requested = True


def start_coordinator() -> Any:
    """A board on the driver's node, which does not go while the driver is there."""
    on_this_node = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=on_this_node)(RunCoordinator).remote()


@contextlib.contextmanager
def monitor_run(
    coordinator: Any, on_progress: Callable[[dict[str, Any]], None], stop_request: StopRequest
) -> Iterator[None]:
    """Shows the workers' status in this process while the block runs, and takes them the wish."""
    finished = threading.Event()

    def poll() -> None:
        try:
            status, lines = ray.get(coordinator.poll.remote())
        except RayError:  # the head is away; whether it comes back is Ray Train's to find out
            return
        for line in lines:
            logger.info(line)
        if status is not None:
            on_progress(status)

    def poll_until_finished() -> None:
        told = aborted = False
        while not finished.wait(PROGRESS_INTERVAL_S):
            if stop_request() and not told:
                coordinator.request_stop.remote()
                told = True
            if stop_request.elapsed_s > STOP_TIMEOUT_S and not aborted:
                os.kill(os.getpid(), signal.SIGINT)  # Ray Train then aborts
                aborted = True
            poll()

    thread = threading.Thread(target=poll_until_finished, daemon=True)
    thread.start()
    try:
        yield
        poll()
    finally:
        finished.set()
        thread.join(timeout=5)
