"""What a run's driver and workers learn from each other, without a cluster."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import pytest

from ray_jobs.cluster.queue import Claim
from ray_jobs.training.coordinator import Poll, RunCoordinator, StallDetector

CLAIM = Claim("the run", 2.0, 0.0)


def test_workers_of_a_silent_driver_stop() -> None:
    coordinator = RunCoordinator(CLAIM, driver_ttl_s=0.2)
    coordinator.poll()
    assert not coordinator.update_progress({"samples": 4})
    time.sleep(0.3)
    assert coordinator.update_progress({"samples": 8})
    assert coordinator.poll().progress == {"samples": 8}  # the driver is there again
    assert not coordinator.update_progress({"samples": 12})
    coordinator.request_stop()
    assert coordinator.update_progress({"samples": 16})


def test_each_start_counts_once_and_brings_its_workers() -> None:
    coordinator = RunCoordinator(CLAIM)
    assert coordinator.poll().num_starts == 0
    assert [coordinator.register_worker(rank, f"first {rank}") for rank in (1, 0)] == [-1, 0]
    assert coordinator.take_workers() == ["first 1", "first 0"]
    assert coordinator.register_worker(0, "second 0") == 1
    assert coordinator.take_workers() == ["second 0"]
    assert coordinator.take_workers() == []
    assert coordinator.poll().num_starts == 2


def test_each_warning_of_rank_zero_is_polled_once() -> None:
    coordinator = RunCoordinator(CLAIM)
    coordinator.add_rank_zero_message("slow store")
    assert coordinator.poll().rank_zero_messages == ["slow store"]
    assert coordinator.poll().rank_zero_messages == []


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def poll(samples: int | None, starts: int = 1, validations: int = 0) -> Poll:
    progress = None if samples is None else {"samples": samples, "num_validations": validations}
    return Poll(progress, [], starts)


def test_workers_without_a_step_are_reported_and_then_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    detector = StallDetector(timeout_s=100, clock=clock)
    caplog.set_level(logging.WARNING)

    def after(seconds: float, seen: Poll) -> bool:
        clock.now += seconds
        return detector.should_restart(seen)

    # Workers that wait for resources have not started.
    assert not after(0, poll(None, starts=0))
    assert not after(500, poll(None, starts=0))
    # Neither a step nor a validation, each 50 s apart, is a stall.
    for seen in (poll(None), poll(4), poll(8), poll(8, validations=1), poll(4, starts=2)):
        assert not after(50, seen)
    assert not caplog.messages
    stalled = poll(4, starts=2)
    assert [after(seconds, stalled) for seconds in (59, 1, 39)] == [False] * 3
    assert [m.partition(":")[0] for m in caplog.messages] == ["no step for 60 s"]
    assert after(1, stalled)
    assert caplog.messages[1:] == ["no step for 100 s: starting the workers again"]
    assert not after(500, stalled)  # they have been killed, and start
    assert not after(1, poll(4, starts=3))
    assert not after(99, poll(4, starts=3))
    assert after(1, poll(4, starts=3))


def test_a_limit_of_zero_never_starts_them_again(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    detector = StallDetector(timeout_s=0, clock=clock)
    assert not detector.should_restart(poll(4))
    clock.now += 1e6
    assert not detector.should_restart(poll(4))
    assert caplog.messages == [
        "no step for 1000000 s: a long validation, a slow store, or a stopped process; waiting, as "
        "cluster.step_timeout_s is 0"
    ]
