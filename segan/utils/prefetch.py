"""Computing the next items of an iterator in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Yields the items; a thread computes up to `depth` of them in advance.

    An error of an item is raised in its place. The thread is a daemon, so a process that ends does
    not wait for an item; it ends when the generator is closed, after the item that it computes.
    """
    slots, results = threading.Semaphore(depth), queue.SimpleQueue[tuple[bool, T | BaseException]]()
    closed = threading.Event()

    def compute() -> None:
        try:
            remaining = iter(items)
            while slots.acquire() and not closed.is_set():
                results.put((True, next(remaining)))
        except BaseException as error:  # raised by the consumer
            results.put((False, error))

    threading.Thread(target=compute, daemon=True).start()
    try:
        while True:
            is_item, found = results.get()
            if not is_item:
                if isinstance(found, StopIteration):
                    return
                raise found  # type: ignore[misc]
            slots.release()
            yield found  # type: ignore[misc]
    finally:
        closed.set()
        slots.release()
