"""The metrics that depend on the clock, in runs that are otherwise equal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

TIMING_KEYS = (
    "seconds",
    "cpu_seconds",
    "images_per_second",
    "data_wait_fraction",
    "run_data_wait_fraction",
    "first_batch_ms",
    "stage_seconds",
    "peak_memory_bytes",
)


def without_timing(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns lines of metrics without the keys in TIMING_KEYS."""
    return [{k: v for k, v in line.items() if k not in TIMING_KEYS} for line in lines]
