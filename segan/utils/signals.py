"""A wish to stop that comes by a signal: the first asks for an end in order, the second ends."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from segan.errors import StoppedError

SIGNAL_EXIT_OFFSET = 128  # and a signal's number are a shell's exit code for an end by it


class StopRequest:
    """Whether one of the signals has come, as a callable that a training can be given."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._requested_at = 0.0

    def __call__(self) -> bool:
        return self.signum is not None

    @property
    def elapsed_s(self) -> float:
        """Seconds since it came; 0 before."""
        return time.monotonic() - self._requested_at if self() else 0.0

    def set(self, signum: int) -> None:
        self.signum, self._requested_at = signum, time.monotonic()


@contextlib.contextmanager
def graceful_shutdown(*signals: int) -> Iterator[StopRequest]:
    """Takes the first of these signals as a wish to stop, while the block runs.

    A second one does what it would have done without us. A signal that is ignored stays so, as
    Ctrl-C behind nohup, and outside of the main thread none is taken. The exit code of a
    StoppedError that leaves the block is that of the signal.
    """
    stop_request, previous = StopRequest(), {number: signal.getsignal(number) for number in signals}

    def on_signal(number: int, frame: Any) -> None:
        restore()
        stop_request.set(number)

    def restore() -> None:
        for number in handled_signals:
            signal.signal(number, previous[number])

    in_main_thread = threading.current_thread() is threading.main_thread()
    handled_signals = [
        n for n in signals if in_main_thread and previous[n] not in (signal.SIG_IGN, None)
    ]
    for number in handled_signals:
        signal.signal(number, on_signal)
    try:
        yield stop_request
    except StoppedError as error:
        if stop_request.signum is not None:
            error.exit_code = SIGNAL_EXIT_OFFSET + stop_request.signum
        raise
    finally:
        if not stop_request():
            restore()
