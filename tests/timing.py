"""What of a run's metrics depends on the clock, in runs that are otherwise the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

TIMING_KEYS = (
    "seconds",
    "images_per_second",
    "data_wait_fraction",
    "run_data_wait_fraction",
    "first_batch_ms",
    "validation_seconds",
)


def without_timing(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics but for these."""
    return [{k: v for k, v in line.items() if k not in TIMING_KEYS} for line in lines]
