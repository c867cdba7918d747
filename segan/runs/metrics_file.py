"""A run's metrics in storage: lines of JSON, to which a flush adds what is new and nothing else.

    <run>/metrics/000007-0000003200.jsonl ...    while it trains
    <run>/metrics.jsonl                          when it has ended

Object storage has no append, so there a flush writes a part; in a folder it appends to the part
that the process began with. A part's name holds its number and the number of samples at which it
begins: it replaces all earlier lines beyond that. So a resumed run drops the lines beyond its
checkpoint by the name of its first part, and a part that begins at 0 replaces all others.
Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from segan import storage
from segan.errors import CorruptedError, NotFoundError
from segan.runs.metric_values import MetricsLine
from segan.storage.lease import no_fence

METRICS_FILE, PARTS_FOLDER = "metrics.jsonl", "metrics"
MAX_METRICS_BYTES = 2**28  # 10,000 epochs of the paper's size have 71 MB
READ_ATTEMPTS = 5  # parts are deleted when they are merged, perhaps after they were listed
_PART = re.compile(r"(?P<number>\d{6,})-(?P<samples>\d{10,})\.jsonl")

Line = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class _Part:
    number: int
    samples: int  # seen when it begins; its lines have more

    @property
    def name(self) -> str:
        return f"{self.number:06d}-{self.samples:010d}.jsonl"


def read_metrics(run_uri: str) -> list[Line]:
    """The lines of a run's metrics, in order; empty before the first was written.

    Logs one line for each part that is missing or has lines that are not whole, and passes over
    them.
    """
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return _read_metrics(run_uri)
        except NotFoundError:  # the parts were merged since they were listed
            continue
    return _read_metrics(run_uri)


def _read_metrics(run_uri: str) -> list[Line]:
    parts, lines = _list_parts(run_uri), list[Line]()
    # The last part that replaces all others; what is before it is about to be deleted.
    start = max((i for i, part in enumerate(parts) if part.samples == 0), default=None)
    expected = 0 if start is None else parts[start].number
    if start is None:
        whole = storage.join(run_uri, METRICS_FILE)
        with contextlib.suppress(NotFoundError):
            lines = _parse(whole, _read(whole))
    parts = parts[start or 0 :]
    names = [storage.join(run_uri, PARTS_FOLDER, part.name) for part in parts]
    contents = storage.map_in_threads(_read, names)
    for part, name, content in zip(parts, names, contents, strict=True):
        if part.number != expected:
            logger.warning(
                "%s: the metrics before this part are missing (parts %d to %d); they are passed "
                "over",
                name,
                expected,
                part.number - 1,
            )
        expected = part.number + 1
        while lines and lines[-1].get("samples", 0) > part.samples:
            lines.pop()
        lines += _parse(name, content)
    return lines


class MetricsWriter:
    """Adds lines to a run's metrics."""

    def __init__(self, run_uri: str, samples: int, fence: Callable[[], None] = no_fence):
        """
        Args:
            samples: seen at the checkpoint that the run resumes from, or 0; later lines of earlier
                processes are dropped.
            fence: as for `segan.runs.run.Run`.
        """
        self.run_uri, self._is_s3, self._fence = run_uri, storage.is_s3(run_uri), fence
        parts = _list_parts(run_uri)
        self._part = _Part(parts[-1].number + 1 if parts else 0, samples)

    def append(self, lines: Sequence[Line], durable: bool = True) -> None:
        """Writes the lines that follow the last call's.

        Args:
            durable: whether they must survive a power cut, which costs a sync in a folder. A
                checkpoint needs the lines before it; without one, they are written anew on resume.
        """
        self._fence()
        name = storage.join(self.run_uri, PARTS_FOLDER, self._part.name)
        if not self._is_s3:
            storage.append_bytes(name, _encode(lines), durable)
        elif lines:
            storage.write_bytes(name, _encode(lines))
            self._part = _Part(self._part.number + 1, lines[-1]["samples"])

    def merge(self) -> None:
        """Makes one metrics.jsonl of all parts, when nothing more will be added.

        The content is written as a part that replaces the others before these are deleted, so that
        a kill at any moment loses and repeats nothing.
        """
        self._fence()
        parts = _list_parts(self.run_uri)
        if not parts:
            return
        lines, merged = read_metrics(self.run_uri), _Part(parts[-1].number + 1, 0)
        names = [storage.join(self.run_uri, PARTS_FOLDER, part.name) for part in (*parts, merged)]
        storage.write_bytes(names[-1], _encode(lines))
        storage.map_in_threads(storage.delete_file, names[:-1])
        write_metrics(self.run_uri, lines)
        storage.delete_folder(storage.join(self.run_uri, PARTS_FOLDER))


def write_metrics(run_uri: str, lines: Sequence[Line]) -> None:
    """Writes metrics.jsonl, the metrics of a run that has ended."""
    storage.write_bytes(storage.join(run_uri, METRICS_FILE), _encode(lines))


def _list_parts(run_uri: str) -> list[_Part]:
    names = (file.name for file in storage.list_files(storage.join(run_uri, PARTS_FOLDER)))
    matches = filter(None, map(_PART.fullmatch, names))
    return sorted(_Part(int(match["number"]), int(match["samples"])) for match in matches)


def _read(uri: str) -> bytes:
    return storage.read_limited(uri, MAX_METRICS_BYTES)


def _encode(lines: Sequence[Line]) -> bytes:
    return "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode()


def _parse(uri: str, content: bytes) -> list[Line]:
    lines, errors = list[Line](), list[str]()
    for text in filter(None, content.split(b"\n")):
        try:
            values = storage.parse_json(uri, text)
            storage.validate_model(uri, MetricsLine, values, "a line of metrics")
            lines.append(values)
        except CorruptedError as error:
            errors.append(str(error))
    if errors:
        total = len(lines) + len(errors)
        logger.warning("%s; %s of %s lines left out", errors[0], len(errors), total)
    return lines
