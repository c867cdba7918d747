"""Where the time of an epoch goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Where the time of an epoch goes, in seconds."""

    began: float = field(default_factory=time.perf_counter)
    images: int = 0
    waiting: float = 0.0
    first_batch: float | None = None
    ended: float | None = None

    @property
    def seconds(self) -> float:
        return (self.ended or time.perf_counter()) - self.began

    @property
    def images_per_second(self) -> float:
        """Of all workers."""
        return self.images / self.seconds

    def waited(self, seconds: float) -> None:
        self.waiting += seconds
        self.first_batch = seconds if self.first_batch is None else self.first_batch

    def stop(self) -> dict[str, float]:
        """seconds, images/s of all workers, share of time spent waiting, first batch in ms."""
        self.ended = time.perf_counter()
        return {
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 2),
            "wait_share": round(self.waiting / self.seconds, 5),
            "first_batch_ms": round(1000 * (self.first_batch or 0.0), 2),
        }
