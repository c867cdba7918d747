"""A wish to stop that comes by a signal: the first asks for an end in order, the second ends."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from segan.errors import StoppedError

FATAL = 128  # and a signal's number are a shell's exit code for an end by it


class Wish:
    """Whether one of the signals has come, as a callable that a training can be given."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def age(self) -> float:
        """Seconds since it came; 0 before."""
        return time.monotonic() - self._since if self() else 0.0

    def make(self, number: int) -> None:
        self.signal, self._since = number, time.monotonic()


@contextlib.contextmanager
def stoppable(*signals: int) -> Iterator[Wish]:
    """Takes the first of these signals as a wish to stop, while the block runs.

    A second one does what it would have done without us. A signal that is ignored stays so, as
    Ctrl-C behind nohup, and outside of the main thread none is taken. The exit code of a
    StoppedError that leaves the block is that of the signal.
    """
    wish, before = Wish(), {number: signal.getsignal(number) for number in signals}

    def take(number: int, frame: Any) -> None:
        restore()
        wish.make(number)

    def restore() -> None:
        for number in mine:
            signal.signal(number, before[number])

    here = threading.current_thread() is threading.main_thread()
    mine = [n for n in signals if here and before[n] not in (signal.SIG_IGN, None)]
    for number in mine:
        signal.signal(number, take)
    try:
        yield wish
    except StoppedError as error:
        if wish.signal is not None:
            error.exit_code = FATAL + wish.signal
        raise
    finally:
        if not wish():
            restore()
