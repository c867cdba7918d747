"""Items that are computed in advance."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from segan.utils.prefetch import prefetch


def test_items_come_in_order() -> None:
    assert list(prefetch(range(20), 3)) == list(range(20))
    assert list(prefetch([], 1)) == []


def test_no_more_items_are_computed_than_asked_for() -> None:
    computed = threading.Semaphore(0)
    begun: list[int] = []

    def compute(item: int) -> int:
        begun.append(item)
        computed.release()
        return item

    items = prefetch(map(compute, range(9)), 2)
    for taken in range(5):
        assert next(items) == taken
        assert len(begun) <= taken + 3
    for _ in range(7):  # the two after the fifth are computed without being asked for
        assert computed.acquire(timeout=30)
    assert begun == list(range(7))


def test_an_error_comes_in_its_place() -> None:
    items = prefetch((1 // (2 - n) for n in range(5)), 4)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_a_closed_generator_ends_its_thread() -> None:
    ended = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            ended.set()

    items = prefetch(endless(), 1)
    next(items)
    items.close()
    assert ended.wait(timeout=30)
