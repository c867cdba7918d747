"""Retry with exponential back-off and a deadline, for transient errors of storage and servers.

An outage is logged once when it begins and once when it ends, however many threads wait; failures
that pass within NOTICE_AFTER_S are not logged.
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
DEFAULT_TIMEOUT_S = 300.0
INITIAL_BACKOFF_S, MAX_BACKOFF_S = 0.2, 10.0
NOTICE_AFTER_S = 2.0

T = TypeVar("T")

logger = logging.getLogger(__name__)


def retry(call: Callable[[], T], timeout_s: float | None = None, advice: str = "") -> T:
    """Returns the result of `call`, repeated while it raises TransientError.

    Args:
        timeout_s: as for `Backoff`.
        advice: as for `Backoff`.

    Raises:
        StorageError: another error occurred, or the deadline passed.
    """
    backoff = Backoff(timeout_s, advice)
    while True:
        try:
            value = call()
        except TransientError as error:
            backoff.wait(error)
        else:
            backoff.reset()
            return value


class Backoff:
    """Exponential back-off with jitter, and a deadline that counts from the last success.

    Args:
        timeout_s: seconds without success after which `wait` gives up; by default
            SEGAN_STORAGE_RETRY_TIMEOUT_S, or 300 if that is not set.
        advice: what the user can do after that; ends the error's message.
    """

    def __init__(self, timeout_s: float | None = None, advice: str = "") -> None:
        if timeout_s is None:
            advice = advice or f"set {TIMEOUT_VARIABLE} to wait longer"
        self._timeout_s = _timeout_from_env() if timeout_s is None else timeout_s
        self._advice = f"; {advice}" if advice else ""
        self._started_at = time.monotonic()
        self._failures = 0

    def wait(self, error: TransientError) -> None:
        """Sleeps, twice as long after each failure; raises StorageError past the deadline."""
        elapsed = time.monotonic() - self._started_at
        if elapsed >= self._timeout_s:
            _outage_notice.clear()
            raise StorageError(f"{error}; gave up after {elapsed:.0f} s{self._advice}") from None
        delay = min(MAX_BACKOFF_S, INITIAL_BACKOFF_S * 2**self._failures) * random.uniform(0.5, 1)  # noqa: S311
        delay = min(delay, self._timeout_s - elapsed)
        self._failures += 1
        if elapsed + delay > NOTICE_AFTER_S:
            _outage_notice.begin(f"{error}; retrying for up to {self._timeout_s:g} s")
        time.sleep(delay)

    def reset(self) -> None:
        """Records a success: the deadline and the delays start over."""
        if self._failures:
            _outage_notice.end()
        self._started_at, self._failures = time.monotonic(), 0


class _OutageNotice:
    """Logs the beginning and the end of an outage once for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started_at: float | None = None

    def begin(self, text: str) -> None:
        with self._lock:
            if self._started_at is None:
                self._started_at = time.monotonic()
                logger.warning(text)

    def end(self) -> None:
        with self._lock:
            if self._started_at is not None:
                elapsed = time.monotonic() - self._started_at
                logger.warning("connection restored after %.0f s", elapsed)
                self._started_at = None

    def clear(self) -> None:
        """Forgets the outage without a line: the error that is raised says how it ended."""
        self._started_at = None


_outage_notice = _OutageNotice()


def _timeout_from_env() -> float:
    value = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(value or DEFAULT_TIMEOUT_S)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{TIMEOUT_VARIABLE}={value}: expected a number of seconds, 0 or more")
    return seconds
