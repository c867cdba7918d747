"""Graceful shutdown: the first signal requests a clean exit, a second one terminates."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from segan.errors import StoppedError

SIGNAL_EXIT_OFFSET = 128  # a shell's exit code for a process ended by a signal is 128 + its number


class StopRequest:
    """Whether a stop has been requested; called by a training loop as its `should_stop`."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._requested_at = 0.0

    def __call__(self) -> bool:
        return self.signum is not None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request; 0 before it."""
        return time.monotonic() - self._requested_at if self() else 0.0

    def set(self, signum: int) -> None:
        self.signum, self._requested_at = signum, time.monotonic()


@contextlib.contextmanager
def graceful_shutdown(*signals: int) -> Iterator[StopRequest]:
    """Turns the first of these signals into a stop request while the block runs.

    A second signal gets the previous handler. An ignored signal stays ignored (Ctrl-C under nohup),
    and outside of the main thread no signal is handled. A StoppedError that leaves the block gets
    the signal's exit code.
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
