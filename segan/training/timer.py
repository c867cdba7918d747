"""Timing of an epoch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class EpochTimer:
    """Measures the duration of an epoch and its waits for data, in seconds."""

    started_at: float = field(default_factory=time.perf_counter)
    images: int = 0
    data_wait_seconds: float = 0.0
    first_batch_seconds: float | None = None
    stopped_at: float | None = None

    @property
    def seconds(self) -> float:
        """Until `stop`, or until now."""
        return (self.stopped_at or time.perf_counter()) - self.started_at

    @property
    def images_per_second(self) -> float:
        """Of all workers."""
        return self.images / self.seconds

    def add_data_wait(self, seconds: float) -> None:
        self.data_wait_seconds += seconds
        if self.first_batch_seconds is None:
            self.first_batch_seconds = seconds

    def stop(self) -> None:
        self.stopped_at = time.perf_counter()
