"""Calls of storage side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

NUM_THREADS = 16  # of small requests, most of the time is latency

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(call: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The results in the order of the items; raises the error of the first that failed."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(call, items))
