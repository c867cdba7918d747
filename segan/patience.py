"""Waiting for storage that has a bad minute: longer after each failure in a row, and not for ever.

People are told when the waiting begins and when it is over, in one line each, however many
threads wait; a failure that passes at the second or third attempt is not worth a line.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from segan.errors import StorageError, TransientError, UsageError

VARIABLE = "SEGAN_STORAGE_PATIENCE"
SECONDS = 300.0  # unless the variable says otherwise
FIRST_WAIT, LONGEST_WAIT = 0.2, 10.0  # seconds
SAID_AFTER = 2.0  # seconds

T = TypeVar("T")

log = logging.getLogger(__name__)


def patiently(attempt: Callable[[], T], seconds: float | None = None) -> T:
    """What `attempt` gives; it is called again as long as it raises TransientError.

    Args:
        seconds: as of `Patience`.

    Raises:
        StorageError: what failed could not pass, or did not within that time.
    """
    patience = Patience(seconds)
    while True:
        try:
            value = attempt()
        except TransientError as error:
            patience.failed(error)
        else:
            patience.succeeded()
            return value


class Patience:
    """Waits after each failure, twice as long as after the one before, give or take.

    Args:
        seconds: how long there may be nothing but failures; else SEGAN_STORAGE_PATIENCE says it.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = _from_environment() if seconds is None else seconds
        self._advice = f" ({VARIABLE} says how long)" if seconds is None else ""
        self._began = time.monotonic()
        self._failures = 0

    def failed(self, error: TransientError) -> None:
        """Waits; raises StorageError with the last failure's words when it was long enough."""
        gone = time.monotonic() - self._began
        if gone >= self._seconds:
            _telling.give_up()
            raise StorageError(f"{error}; tried for {gone:.0f} s{self._advice}") from None
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2**self._failures) * random.uniform(0.5, 1)  # noqa: S311
        wait = min(wait, self._seconds - gone)
        self._failures += 1
        if gone + wait > SAID_AFTER:
            _telling.begin(f"{error}; waiting for it, at most {self._seconds:g} s")
        time.sleep(wait)

    def succeeded(self) -> None:
        """From here on the time counts anew."""
        if self._failures:
            _telling.end()
        self._began, self._failures = time.monotonic(), 0


class _Telling:
    """Whether people know that storage is being waited for, and since when it is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None

    def begin(self, text: str) -> None:
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                log.warning(text)

    def give_up(self) -> None:
        self._since = None  # the error has the last word

    def end(self) -> None:
        with self._lock:
            if self._since is not None:
                log.warning("storage answers again after %.0f s", time.monotonic() - self._since)
                self._since = None


_telling = _Telling()


def _from_environment() -> float:
    given = os.environ.get(VARIABLE, "")
    try:
        seconds = float(given or SECONDS)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{VARIABLE}={given}: expected seconds, 0 or more")
    return seconds
