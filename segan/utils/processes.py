"""Runs tasks in a pool of processes that end when this process does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import TypeVar

from segan.errors import SeganError

Task = TypeVar("Task")
Result = TypeVar("Result")


def preload(module: str) -> None:
    """Imports `module` in the background, in the server that forks `map_unordered`'s workers."""
    _forkserver_context(module)
    forkserver.ensure_running()


def map_unordered(
    fn: Callable[[Task], Result], tasks: Sequence[Task], max_workers: int
) -> Iterator[Result]:
    """Yields `fn(task)` for every task, in order of completion.

    Args:
        fn: a module-level function; the worker processes import its module.
        max_workers: maximum number of worker processes; with 1, tasks run in this process.

    Raises:
        SeganError: a worker process was killed.
        Exception: whatever `fn` raises.
    """
    if min(max_workers, len(tasks)) <= 1:
        yield from map(fn, tasks)
        return
    pool = ProcessPoolExecutor(
        min(max_workers, len(tasks)),
        _forkserver_context(fn.__module__),
        initializer=_init_worker,
        initargs=(dict(os.environ),),
    )
    with pool:
        futures = [pool.submit(fn, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise SeganError(
                "a worker process was killed, probably because memory ran out; run the same "
                f"command again with fewer than {max_workers} workers to resume"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _forkserver_context(module: str) -> BaseContext:
    # The server has imported the module and has no threads: forking it is fast and safe, unlike
    # forking this process, which may have threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _init_worker(environment: dict[str, str]) -> None:
    # The server keeps the environment of its own start, which may be another pool's.
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends the worker when its parent is killed; it would otherwise wait for tasks forever."""
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
        os._exit(1)
