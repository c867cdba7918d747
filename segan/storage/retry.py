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

TIMEOUT_VARIABLE = "SEGAN_STORAGE_RETRY_TIMEOUT_S"
DEFAULT_TIMEOUT_S = 300.0  # unless the variable says otherwise
INITIAL_BACKOFF_S, MAX_BACKOFF_S = 0.2, 10.0  # seconds
NOTICE_AFTER_S = 2.0  # seconds

T = TypeVar("T")

logger = logging.getLogger(__name__)


def retry(call: Callable[[], T], timeout_s: float | None = None) -> T:
    """What `attempt` gives; it is called again as long as it raises TransientError.

    Args:
        seconds: as of `Patience`.

    Raises:
        StorageError: what failed could not pass, or did not within that time.
    """
    backoff = Backoff(timeout_s)
    while True:
        try:
            value = call()
        except TransientError as error:
            backoff.wait(error)
        else:
            backoff.reset()
            return value


class Backoff:
    """Waits after each failure, twice as long as after the one before, give or take.

    Args:
        seconds: how long there may be nothing but failures; else SEGAN_STORAGE_RETRY_TIMEOUT_S
            says it.
    """

    def __init__(self, timeout_s: float | None = None) -> None:
        self._timeout_s = _timeout_from_env() if timeout_s is None else timeout_s
        self._advice = f" ({TIMEOUT_VARIABLE} says how long)" if timeout_s is None else ""
        self._started_at = time.monotonic()
        self._failures = 0

    def wait(self, error: TransientError) -> None:
        """Waits; raises StorageError with the last failure's words when it was long enough."""
        elapsed = time.monotonic() - self._started_at
        if elapsed >= self._timeout_s:
            _outage_notice.clear()
            raise StorageError(f"{error}; tried for {elapsed:.0f} s{self._advice}") from None
        delay = min(MAX_BACKOFF_S, INITIAL_BACKOFF_S * 2**self._failures) * random.uniform(0.5, 1)  # noqa: S311
        delay = min(delay, self._timeout_s - elapsed)
        self._failures += 1
        if elapsed + delay > NOTICE_AFTER_S:
            _outage_notice.begin(f"{error}; waiting for it, at most {self._timeout_s:g} s")
        time.sleep(delay)

    def reset(self) -> None:
        """From here on the time counts anew."""
        if self._failures:
            _outage_notice.end()
        self._started_at, self._failures = time.monotonic(), 0


class _OutageNotice:
    """Whether people know that storage is being waited for, and since when it is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started_at: float | None = None

    def begin(self, text: str) -> None:
        with self._lock:
            if self._started_at is None:
                self._started_at = time.monotonic()
                logger.warning(text)

    def clear(self) -> None:
        self._started_at = None  # the error has the last word

    def end(self) -> None:
        with self._lock:
            if self._started_at is not None:
                logger.warning(
                    "storage answers again after %.0f s", time.monotonic() - self._started_at
                )
                self._started_at = None


_outage_notice = _OutageNotice()


def _timeout_from_env() -> float:
    given = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(given or DEFAULT_TIMEOUT_S)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{TIMEOUT_VARIABLE}={given}: expected seconds, 0 or more")
    return seconds
