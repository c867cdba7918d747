"""Work spread over processes of this machine, which end when this one does."""

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
    """Begins to import `module` where `spread` will take its processes from, beside this one."""
    _forkserver_context(module)
    forkserver.ensure_running()


def map_unordered(
    fn: Callable[[Task], Result], tasks: Sequence[Task], max_workers: int
) -> Iterator[Result]:
    """What `work` makes of each task, in the order in which they are done.

    Args:
        work: a function of a module, which the processes import.
        processes: at most so many beside this one; with 1, all is done in this one.

    Raises:
        SeganError: a process was ended from outside; and whatever `work` raises.
    """
    if min(max_workers, len(tasks)) <= 1:
        yield from map(fn, tasks)
        return
    with _create_pool(min(max_workers, len(tasks)), fn.__module__) as pool:
        futures = [pool.submit(fn, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise SeganError(
                "a worker process was ended from outside, as the system does when memory runs "
                f"out; go on by the same command, with fewer workers than {max_workers}"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _create_pool(max_workers: int, module: str) -> ProcessPoolExecutor:
    environment = {**os.environ}
    return ProcessPoolExecutor(
        max_workers, _forkserver_context(module), initializer=_init_worker, initargs=(environment,)
    )


def _forkserver_context(module: str) -> BaseContext:
    # Forked from a server that has imported the module and has no thread: fast to start, and
    # nothing of this process, whose threads a fork would break, comes along.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _init_worker(environment: dict[str, str]) -> None:
    # The server has that of its own start, which may be another pool's and long ago.
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to hear
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """An executor's process would wait for ever for the next task of one that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a process of a pool has a parent"
    wait([parent.sentinel])
    os._exit(1)
