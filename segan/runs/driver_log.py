"""driver.log in the folder of a run or a study: what its commands said, and their warnings.

Each line has a UTC time and a level. Object storage has no append, so a thread rewrites the file
every few seconds if there are new lines; its size is bounded. Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from segan import storage
from segan.errors import SeganError, StoppedError, StorageError
from segan.runs.run import RUN_FILE
from segan.runs.study import STUDY_FILE
from segan.storage.compare_and_swap import conditional_file
from segan.storage.lease import RAY_JOB_VARIABLE, read_driver
from segan.utils.messages import capture_messages, redact_secrets

LOG_FILE = "driver.log"
# The first lines and the last are kept, and what lies between them is counted.
HEAD_BYTES, TAIL_BYTES = 64 * 1024, 448 * 1024
MAX_LINE_CHARACTERS = 4000
FLUSH_INTERVAL_S = 5.0
FOLLOW_INTERVAL_S = 2.0
CLOSE_ATTEMPTS = 3

logger = logging.getLogger(__name__)

_OMISSION = re.compile(r"\.\.\. (\d+) lines? left out")


@dataclass(frozen=True)
class LogLine:
    """A line of driver.log; `time` and `level` are empty where lines were left out."""

    time: str
    level: str
    message: str

    @classmethod
    def parse(cls, line: str) -> LogLine:
        if _OMISSION.fullmatch(line):
            return cls("", "", line)
        at, level, message = [*line.split(" ", 2), "", ""][:3]
        return cls(at, level, message)

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return " ".join(filter(None, (self.time, self.level, self.message)))


class BoundedLines:
    """Lines of text, of which the first and the last are kept up to a size in bytes."""

    def __init__(self, head_bytes: int = HEAD_BYTES, tail_bytes: int = TAIL_BYTES):
        self._head_bytes, self._tail_bytes = head_bytes, tail_bytes
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._num_omitted = 0

    def add(self, line: str) -> None:
        """Adds a line without its end; of a line that counts omitted ones only the number."""
        if omission := _OMISSION.fullmatch(line):
            self._num_omitted += int(omission[1])
            self._head_bytes = 0  # nothing that comes later is among the first lines
            return
        size = len(line.encode()) + 1
        if size <= self._head_bytes:
            self._head.append(line)
            self._head_bytes -= size
            return
        self._head_bytes = 0
        self._tail.append(line)
        self._tail_bytes -= size
        while self._tail_bytes < 0:
            self._tail_bytes += len(self._tail.popleft().encode()) + 1
            self._num_omitted += 1

    def encode(self) -> bytes:
        count = self._num_omitted
        omission = [f"... {count} {'line' if count == 1 else 'lines'} left out"] if count else []
        return "".join(f"{line}\n" for line in (*self._head, *omission, *self._tail)).encode()


class DriverLog:
    """Writes driver.log; only the process that holds the run's lease may have one.

    The first write waits for the run or study itself, so that a command that fails before it has
    begun leaves nothing behind.
    """

    def __init__(self, uri: str):
        self.uri = storage.join(uri, LOG_FILE)
        self._descriptions = [storage.join(uri, name) for name in (RUN_FILE, STUDY_FILE)]
        self._file = conditional_file(self.uri, quick=True)
        self._lines, self._lock = BoundedLines(), threading.RLock()  # a signal's handler may log
        before = conditional_file(self.uri).read()
        # What the file may hold if nobody else has written it: the last write and the one before,
        # as a write can succeed although its response was lost.
        self._written = {before.content if before else b""}
        for line in _decode(before.content if before else b""):
            self._lines.add(line)
        self._content = self._lines.encode()
        self._replaced, self._has_begun = False, before is not None

    def write(self, level: int, text: str) -> None:
        """Adds a line for each line of the text, without secrets."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
        with self._lock:
            for line in redact_secrets(text).splitlines():
                message = line[:MAX_LINE_CHARACTERS].rstrip()
                self._lines.add(f"{at} {logging.getLevelName(level)} {message}")

    def flush(self) -> bool:
        """Writes new lines to storage, in one attempt; returns whether there are none left."""
        with self._lock:
            content = self._lines.encode()
        if self._replaced or content == self._content:
            return True
        try:
            self._has_begun = self._has_begun or any(map(storage.exists, self._descriptions))
            if not self._has_begun:
                return True
            found = self._file.read()
            if (found.content if found else b"") not in self._written:
                self._replaced = True  # a driver that took the lease over writes it now
                return True
            self._written = {found.content if found else b"", content}
            if self._file.compare_and_swap(found, content):
                self._content = content
        except StorageError:  # the next flush has these lines too
            return False
        return content == self._content


@contextlib.contextmanager
def keep_driver_log(uri: str, command: str) -> Iterator[None]:
    """Keeps the messages of the block, and the error that ends it, in driver.log.

    Must run under the lease of the run or study. Storage that does not respond never fails the
    block: the lines are written with the next ones.

    Args:
        uri: of the run or study.
        command: names what runs, for the first line.
    """
    log, finished = DriverLog(uri), threading.Event()

    def flush_in_background() -> None:
        while not finished.wait(FLUSH_INTERVAL_S):
            log.flush()

    log.write(logging.INFO, f"{command}: segan {version('segan')} on {socket.gethostname()}")
    thread = threading.Thread(target=flush_in_background, name="driver-log", daemon=True)
    thread.start()
    try:
        with capture_messages(log.write):
            yield
        log.write(logging.INFO, f"{command}: done")
    except BaseException as error:
        level = logging.INFO if isinstance(error, StoppedError) else logging.ERROR
        log.write(level, _describe(error))
        raise
    finally:
        finished.set()
        thread.join()
        for attempt in range(CLOSE_ATTEMPTS):
            if log.flush():
                break
            time.sleep(0.2 * 2**attempt)
        if RAY_JOB_VARIABLE in os.environ:  # whose own log ends with the cluster
            logger.info("log: segan runs logs %s", uri)


def read_log(uri: str) -> list[LogLine]:
    """The lines of the driver.log of a run or a study.

    Raises:
        StorageError: there is none.
    """
    uri = storage.normalise(uri)
    storage.check_access(uri)
    stored = conditional_file(storage.join(uri, LOG_FILE)).read()
    if stored is None:
        raise StorageError(
            f"{uri}: no {LOG_FILE} here; expected the URI of a run or a study that a command has "
            "started"
        )
    return [LogLine.parse(line) for line in _decode(stored.content)]


def follow_log(uri: str, sleep: Callable[[float], object] = time.sleep) -> Iterator[LogLine]:
    """Yields the lines of driver.log, and new ones until no driver holds the run any more."""
    last: LogLine | None = None
    while True:
        driver = read_driver(uri)  # before reading, so that the last lines are not missed
        lines = read_log(uri)
        yield from lines[_position_after(lines, last) :]
        last = lines[-1] if lines else last
        if driver is None:
            return
        sleep(FOLLOW_INTERVAL_S)


def _position_after(lines: list[LogLine], last: LogLine | None) -> int:
    if last not in lines:
        return 0
    return len(lines) - lines[::-1].index(last)


def _decode(content: bytes) -> list[str]:
    return content.decode(errors="replace").splitlines()


def _describe(error: BaseException) -> str:
    if isinstance(error, SeganError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "".join(traceback.format_exception(error))
