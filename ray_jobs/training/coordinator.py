"""The actor through which a run's driver and its workers exchange messages.

Ray Train's driver cannot call the workers. Imports neither torch nor Ray Train, so that the actor's
process starts in a fraction of the time.
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

from segan.utils.messages import TRANSCRIPT

if TYPE_CHECKING:
    from segan.training.resume import ResumePoint
    from segan.utils.signals import StopRequest

logger, transcript = logging.getLogger(__name__), logging.getLogger(TRANSCRIPT)

PROGRESS_INTERVAL_S = 0.5
STOP_TIMEOUT_S = 15.0  # before the workers are aborted; `ray job stop` kills the driver after 30


class RunCoordinator:
    """The actor's class.

    To the workers it passes the point that a worker group starts from and the driver's request to
    stop; to the driver, the latest progress, warnings to log and rank 0's messages.
    """

    def __init__(self) -> None:
        self.progress: dict[str, Any] | None = None
        self.messages: list[str] = []
        self.rank_zero_messages: list[str] = []
        self.num_starts = 0
        self.stop_requested = False

    def set_resume_point(self, resume_point: ResumePoint, messages: list[str]) -> None:
        """Stores where the next worker group starts, and messages for the driver."""
        self.resume_point = resume_point
        self.messages += messages

    def get_resume_point(self) -> ResumePoint:
        return self.resume_point

    def register_start(self) -> int:
        """Counts a start of the worker group; returns the number of earlier starts."""
        self.num_starts += 1
        return self.num_starts - 1

    def update_progress(self, progress: dict[str, Any]) -> bool:
        """Stores the progress; returns whether the driver has requested a stop."""
        self.progress = progress
        return self.stop_requested

    def add_rank_zero_message(self, text: str) -> None:
        """Stores a warning of rank 0, which its own process has shown already."""
        self.rank_zero_messages.append(text)

    def poll(self) -> tuple[dict[str, Any] | None, list[str], list[str]]:
        """The latest progress; the warnings and rank 0's messages since the last call."""
        messages, self.messages = self.messages, []
        rank_zero_messages, self.rank_zero_messages = self.rank_zero_messages, []
        return self.progress, messages, rank_zero_messages

    def request_stop(self) -> None:
        self.stop_requested = True


def start_coordinator() -> Any:
    """The handle of a new coordinator on the driver's node, which lives as long as the driver."""
    on_this_node = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=on_this_node)(RunCoordinator).remote()


@contextlib.contextmanager
def monitor_run(
    coordinator: Any, on_progress: Callable[[dict[str, Any]], None], stop_request: StopRequest
) -> Iterator[None]:
    """Polls the coordinator in a thread while the block runs.

    Reports the workers' progress, logs their messages and forwards a stop request to them. Workers
    that have not stopped `STOP_TIMEOUT_S` after the request are aborted.
    """
    finished = threading.Event()

    def poll() -> None:
        try:
            progress, messages, rank_zero_messages = ray.get(coordinator.poll.remote())
        except RayError:  # the head node is unreachable, which Ray Train handles
            return
        for message in messages:
            logger.warning(message)
        for message in rank_zero_messages:
            transcript.warning(f"rank 0: {message}")
        if progress is not None:
            on_progress(progress)

    def poll_until_finished() -> None:
        forwarded = aborted = False
        while not finished.wait(PROGRESS_INTERVAL_S):
            if stop_request() and not forwarded:
                coordinator.request_stop.remote()
                forwarded = True
            if stop_request.elapsed_s > STOP_TIMEOUT_S and not aborted:
                os.kill(os.getpid(), signal.SIGINT)  # Ray Train's handler aborts the run
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
