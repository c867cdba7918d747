"""Passes on the messages of this process: log records of this project and Python's warnings."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator

LOGGERS = ("segan", "ray_jobs")
# What a command shows on its terminal without logging it; no handler of LOGGERS gets it.
TRANSCRIPT = "segan.transcript"
_transcript = logging.getLogger(TRANSCRIPT)
_transcript.propagate = False
_transcript.setLevel(logging.INFO)

Write = Callable[[int, str], None]  # a level of `logging`, and one line or more

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")
_MIN_SECRET_LENGTH = 8  # shorter values are words such as `true`


class _CaptureHandler(logging.Handler):
    def __init__(self, write: Write, level: int):
        super().__init__(level)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(record.levelno, record.getMessage())


@contextlib.contextmanager
def capture_messages(write: Write, level: int = logging.INFO) -> Iterator[None]:
    """Passes messages to `write` while the block runs; they are shown as before.

    Args:
        write: called by any thread.
        level: the lowest level of `logging` that is passed on.
    """
    handler, show_warning = _CaptureHandler(write, level), warnings.showwarning

    def show_and_write(message: Warning | str, category: type[Warning], *place: object) -> None:
        show_warning(message, category, *place)  # type: ignore[arg-type]
        write(logging.WARNING, f"{category.__name__}: {message}")

    loggers = [_transcript, *(logging.getLogger(name) for name in LOGGERS)]
    for logger in loggers:
        logger.addHandler(handler)
    warnings.showwarning = show_and_write  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = show_warning
        for logger in loggers:
            logger.removeHandler(handler)


def redact_secrets(text: str) -> str:
    """Replaces the values of environment variables that hold keys, tokens or passwords."""
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET_LENGTH and _SECRET_NAME.search(name):
            text = text.replace(value, f"<{name}>")
    return text
