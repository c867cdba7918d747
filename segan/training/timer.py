"""Where the time of an epoch goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class EpochTimer:
    """Where the time of an epoch goes, in seconds."""

    started_at: float = field(default_factory=time.perf_counter)
    images: int = 0
    data_wait_seconds: float = 0.0
    first_batch_seconds: float | None = None
    stopped_at: float | None = None

    @property
    def seconds(self) -> float:
        return (self.stopped_at or time.perf_counter()) - self.started_at

    @property
    def images_per_second(self) -> float:
        """Of all workers."""
        return self.images / self.seconds

    def add_data_wait(self, seconds: float) -> None:
        self.data_wait_seconds += seconds
        self.first_batch_seconds = (
            seconds if self.first_batch_seconds is None else self.first_batch_seconds
        )

    def stop(self) -> dict[str, float]:
        """seconds, images/s of all workers, share of time spent waiting, first batch in ms."""
        self.stopped_at = time.perf_counter()
        return {
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 2),
            "data_wait_fraction": round(self.data_wait_seconds / self.seconds, 5),
            "first_batch_ms": round(1000 * (self.first_batch_seconds or 0.0), 2),
        }
