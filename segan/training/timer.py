"""Timing of an epoch and of the stages of a training."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch.profiler import record_function


class Stage(StrEnum):
    """What a training spends its time on.

    SNAPSHOT, UPLOAD and RESTORE are those of checkpoints. ALL_REDUCE is the part of the exchange of
    gradients that a backward pass waits for, so it is also in CRITIC and SEGMENTOR. Stages of a
    background thread overlap with the others.
    """

    DATA_WAIT = "data_wait"
    HOST_TO_DEVICE = "host_to_device"
    AUGMENTATION = "augmentation"
    CRITIC = "critic"
    SEGMENTOR = "segmentor"
    ALL_REDUCE = "all_reduce"
    VALIDATION = "validation"
    SNAPSHOT = "snapshot"
    UPLOAD = "upload"
    RESTORE = "restore"


# On a GPU, the host only queues the work of these.
_QUEUED_STAGES = {Stage.HOST_TO_DEVICE, Stage.AUGMENTATION, Stage.CRITIC, Stage.SEGMENTOR}


class StageTimer:
    """Adds up the seconds of each stage; any thread may add.

    On a GPU, queued work is timed by events on the device, which are read when the sums are taken,
    so that timing waits for nothing.
    """

    def __init__(self, device: torch.device):
        self._uses_events = device.type == "cuda"
        self._lock = threading.Lock()
        self._seconds: dict[Stage, float] = {}
        self._events: list[tuple[Stage, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Adds the duration of the block to a stage; a profiler's trace shows the block."""
        if self._uses_events and stage in _QUEUED_STAGES:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            with record_function(stage.value):
                yield
            end.record()
            self._events.append((stage, start, end))
        else:
            started_at = time.perf_counter()
            with record_function(stage.value):
                yield
            self.add(stage, time.perf_counter() - started_at)

    def add(self, stage: Stage, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def read_events(self) -> None:
        """Adds the durations of finished work on a GPU, so that the list of events stays short.

        Waits for the device, so it is called where that is waited for anyway.
        """
        events, self._events = self._events, []
        for stage, start, end in events:
            end.synchronize()
            self.add(stage, start.elapsed_time(end) / 1000)

    def take(self) -> dict[str, float]:
        """The seconds by stage since the last call, of those that occurred."""
        self.read_events()
        with self._lock:
            seconds, self._seconds = self._seconds, {}
        return {stage.value: round(seconds[stage], 4) for stage in Stage if stage in seconds}


@dataclass
class EpochTimer:
    """Measures the duration of an epoch and its waits for data, in seconds."""

    started_at: float = field(default_factory=time.perf_counter)
    cpu_started_at: float = field(default_factory=time.process_time)
    images: int = 0
    data_wait_seconds: float = 0.0
    first_batch_seconds: float | None = None
    stopped_at: float | None = None
    cpu_stopped_at: float | None = None

    @property
    def seconds(self) -> float:
        """Until `stop`, or until now."""
        return (self.stopped_at or time.perf_counter()) - self.started_at

    @property
    def cpu_seconds(self) -> float:
        """Of all threads of this process, until `stop`, or until now."""
        return (self.cpu_stopped_at or time.process_time()) - self.cpu_started_at

    @property
    def images_per_second(self) -> float:
        """Of all workers."""
        return self.images / self.seconds

    def add_data_wait(self, seconds: float) -> None:
        self.data_wait_seconds += seconds
        if self.first_batch_seconds is None:
            self.first_batch_seconds = seconds

    def stop(self) -> None:
        self.stopped_at, self.cpu_stopped_at = time.perf_counter(), time.process_time()
