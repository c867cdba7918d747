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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from ray_jobs.cluster.queue import Claim, enter_queue, on_this_node
from segan.storage.lease import LeaseConfig
from segan.utils.messages import TRANSCRIPT

if TYPE_CHECKING:
    from segan.utils.signals import StopRequest

logger, transcript = logging.getLogger(__name__), logging.getLogger(TRANSCRIPT)

PROGRESS_INTERVAL_S = 0.5
STOP_TIMEOUT_S = 15.0  # before the workers are aborted; `ray job stop` kills the driver after 30
STALL_WARNING_S = 60.0


@dataclass(frozen=True)
class Poll:
    """What the driver gets from the coordinator.

    Attributes:
        progress: the latest; None before the first.
        messages: warnings since the last call.
        num_starts: of the worker group.
        rank_zero_messages: warnings of rank 0 since the last call.
    """

    progress: dict[str, Any] | None
    messages: list[str]
    num_starts: int
    rank_zero_messages: list[str] = field(default_factory=list)


class RunCoordinator:
    """The actor's class.

    To the workers it passes the point that a worker group starts from and the driver's request to
    stop; to the driver, the latest progress, warnings to log and rank 0's own. In the queue of runs
    it stands for the resources of the run.
    """

    def __init__(self, claim: Claim, driver_ttl_s: float = LeaseConfig.ttl_s) -> None:
        """
        Args:
            driver_ttl_s: after so many seconds without a call of the driver the workers stop, since
                another driver can then have taken the run over. After twice as many the run has
                lost its place in the queue.
        """
        self.claim: Claim | None = claim
        self.driver_ttl_s = driver_ttl_s
        self.progress: dict[str, Any] | None = None
        self.messages: list[str] = []
        self.rank_zero_messages: list[str] = []
        self.num_starts = 0
        self.workers: dict[int, Any] = {}
        self.stop_requested = False
        self.last_poll = time.monotonic()

    def get_claim(self) -> Claim | None:
        """None if the driver has been silent, for good: others may have started in its place."""
        if time.monotonic() - self.last_poll > 2 * self.driver_ttl_s:
            self.claim = None
        return self.claim

    def renew_claim(self) -> None:
        self.last_poll = time.monotonic()

    def set_resume_point(self, resume_point: list[Any], messages: list[str]) -> None:
        """Stores where the next worker group starts, and messages for the driver.

        Args:
            resume_point: a reference to it, in a list, so that its manifest of any number of
                shards is not copied by this actor for each worker.
        """
        self.resume_point = resume_point
        self.messages += messages

    def get_resume_point(self) -> list[Any]:
        return self.resume_point

    def register_worker(self, rank: int, worker: Any) -> int:
        """Adds a worker of the group that starts; returns the number of earlier starts.

        Args:
            worker: the handle of its actor.
        """
        self.workers[rank] = worker
        self.num_starts += rank == 0
        return self.num_starts - 1

    def take_workers(self) -> list[Any]:
        """The handles of the workers that have registered, which are then forgotten."""
        workers, self.workers = [*self.workers.values()], {}
        return workers

    def update_progress(self, progress: dict[str, Any]) -> bool:
        """Stores the progress; returns whether the workers should stop."""
        self.progress = progress
        return self.stop_requested or time.monotonic() - self.last_poll > self.driver_ttl_s

    def add_rank_zero_message(self, text: str) -> None:
        """Stores a warning of rank 0, which its own process has shown already."""
        self.rank_zero_messages.append(text)

    def poll(self) -> Poll:
        self.renew_claim()
        messages, self.messages = self.messages, []
        rank_zero_messages, self.rank_zero_messages = self.rank_zero_messages, []
        return Poll(self.progress, messages, self.num_starts, rank_zero_messages)

    def request_stop(self) -> None:
        self.stop_requested = True


@contextlib.contextmanager
def queued_coordinator(claim: Claim) -> Iterator[tuple[Any, int]]:
    """A coordinator on the driver's node, which is killed after the block or with the driver.

    Yields:
        Its handle, and the run's number in the queue.
    """
    actor_class = ray.remote(num_cpus=0, scheduling_strategy=on_this_node())(RunCoordinator)
    coordinator, number = enter_queue(actor_class, claim)
    try:
        yield coordinator, number
    finally:
        ray.kill(coordinator)


@dataclass
class StallDetector:
    """Notices that the workers of a run make no progress.

    Attributes:
        timeout_s: seconds after which they are started again; 0 for never.
    """

    timeout_s: float
    clock: Callable[[], float] = time.monotonic
    _state: tuple[Any, ...] = ()
    _since: float = 0.0
    _has_warned: bool = False
    _awaited_start: int = 1

    def should_restart(self, poll: Poll) -> bool:
        """Whether the workers should be started again; logs a warning after a minute."""
        progress = poll.progress or {}
        state = (poll.num_starts, progress.get("samples"), progress.get("num_validations"))
        # Until the workers have started, Ray waits for resources or for their processes.
        if state != self._state or poll.num_starts < self._awaited_start:
            self._state, self._since, self._has_warned = state, self.clock(), False
        elapsed = self.clock() - self._since
        if elapsed >= STALL_WARNING_S and not self._has_warned:
            self._has_warned = True
            logger.warning(
                f"no step for {elapsed:.0f} s: a long validation, a slow store, or a stopped "
                f"process; {self._outlook()}"
            )
        if not self.timeout_s or elapsed < self.timeout_s:
            return False
        logger.warning(f"no step for {elapsed:.0f} s: starting the workers again")
        self._awaited_start = poll.num_starts + 1
        return True

    def _outlook(self) -> str:
        if not self.timeout_s:
            return "waiting, as cluster.step_timeout_s is 0"
        return f"after {self.timeout_s:g} s (cluster.step_timeout_s) the workers are started again"


@dataclass
class RunMonitor:
    """Polls the coordinator: progress, messages, a stop request, stalled workers."""

    coordinator: Any
    on_progress: Callable[[dict[str, Any]], None]
    stop_request: StopRequest
    stall_detector: StallDetector
    _finished: threading.Event = field(default_factory=threading.Event)

    def poll(self) -> None:
        try:
            poll: Poll = ray.get(self.coordinator.poll.remote())
            if self.stall_detector.should_restart(poll):
                for worker in ray.get(self.coordinator.take_workers.remote()):
                    ray.kill(worker)  # Ray Train then starts the group again
        except RayError:  # the head node is unreachable, which Ray Train handles
            return
        for message in poll.messages:
            logger.warning(message)
        for message in poll.rank_zero_messages:
            transcript.warning(f"rank 0: {message}")
        if poll.progress is not None:
            self.on_progress(poll.progress)

    def poll_until_finished(self) -> None:
        forwarded = aborted = False
        while not self._finished.wait(PROGRESS_INTERVAL_S):
            if self.stop_request() and not forwarded:
                self.coordinator.request_stop.remote()
                forwarded = True
            if self.stop_request.elapsed_s > STOP_TIMEOUT_S and not aborted:
                os.kill(os.getpid(), signal.SIGINT)  # Ray Train's handler aborts the run
                aborted = True
            self.poll()

    def finish(self) -> None:
        self._finished.set()


@contextlib.contextmanager
def monitor_run(
    coordinator: Any,
    on_progress: Callable[[dict[str, Any]], None],
    stop_request: StopRequest,
    step_timeout_s: float,
) -> Iterator[None]:
    """Polls the coordinator in a thread while the block runs.

    Reports the workers' progress, logs their messages and forwards a stop request to them. Workers
    that have not stopped `STOP_TIMEOUT_S` after the request are aborted. Workers that make no
    progress for `step_timeout_s` seconds are killed, so that Ray Train starts them again.
    """
    monitor = RunMonitor(coordinator, on_progress, stop_request, StallDetector(step_timeout_s))
    thread = threading.Thread(target=monitor.poll_until_finished, daemon=True)
    thread.start()
    try:
        yield
        monitor.poll()
    finally:
        monitor.finish()
        thread.join(timeout=5)
