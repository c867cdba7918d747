"""A run's metrics and TensorBoard events."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from segan import storage
from segan.runs.metrics_file import MetricsWriter
from segan.runs.run import Run
from segan.training.event_writer import EventWriter
from segan.training.metrics import EpochMetrics, StepMetrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricsUpdate:
    """Lines of metrics and records of TensorBoard's event file that are not in storage yet."""

    lines: list[dict[str, Any]]
    events: bytes


class MetricsLog:
    """Writes metrics as lines of the run's metrics and as TensorBoard scalars.

    An update holds what was added since the last one. A resumed run drops the lines beyond its
    checkpoint, so that each step has exactly one line.

    Attributes:
        num_lines: written since the run began.
    """

    def __init__(self, run: Run, samples: int, num_lines: int):
        """
        Args:
            samples: seen at the checkpoint that the run resumes from; 0 for a new run.
            num_lines: that were written up to this checkpoint; the number found is compared.
        """
        self.run, self.num_lines = run, num_lines
        self._metrics = MetricsWriter(run.uri, samples, run.fence)
        self._pending = list[dict[str, Any]]()
        self._writer = EventWriter(purge_step=samples + 1)
        self._events = next(self._writer.files(), None)
        self._num_event_parts = self._num_event_bytes = 0
        found = sum(line["samples"] <= samples for line in run.metrics()) if samples else 0
        if found != num_lines:
            logger.warning(
                "%s: expected %d lines of metrics up to the checkpoint, found %d; the curves have "
                "a gap, and the training goes on",
                run,
                num_lines,
                found,
            )

    def write(self, metrics: StepMetrics | EpochMetrics, samples: int) -> None:
        """Adds a line; its numbers become TensorBoard scalars at the step `samples`."""
        values = metrics.to_dict()
        self.num_lines += 1
        self._pending.append({"kind": metrics.kind, "samples": samples, **values})
        for name, value in iter_scalars(values):
            if name not in ("epoch", "step"):
                self._writer.add_scalar(f"{metrics.kind}/{name}", value, samples)

    def take(self) -> MetricsUpdate:
        """Returns what was added since the last call, for `store`."""
        lines, self._pending = self._pending, []
        self._writer.flush()
        return MetricsUpdate(lines, self._take_events())

    def _take_events(self) -> bytes:
        if self._events is None:
            return b""
        with self._events.open("rb") as file:
            file.seek(self._num_event_bytes)
            events = file.read()
        self._num_event_bytes += len(events)
        return events

    def store(self, update: MetricsUpdate, durable: bool) -> None:
        """Writes an update to storage; may run in another thread, one update after another.

        Args:
            durable: whether the lines must survive a power cut: those before a checkpoint must.
        """
        self._metrics.append(update.lines, durable)
        if self._events is None or not update.events:
            return
        name = storage.join(self.run.uri, "tensorboard", self._events.name)
        if not storage.is_s3(name):
            storage.append_bytes(name, update.events, durable=False)
            return
        # TensorBoard reads the files of a folder in the order of their names.
        self._num_event_parts += 1
        storage.write_bytes(_part_name(name, self._num_event_parts), update.events)

    def merge(self) -> None:
        """Makes one file each of metrics and events, when the training has ended."""
        self._metrics.merge()
        if self._events is None or not self._num_event_parts:
            return
        name = storage.join(self.run.uri, "tensorboard", self._events.name)
        storage.write_bytes(name, self._events.read_bytes()[: self._num_event_bytes])
        for number in range(1, self._num_event_parts + 1):
            storage.delete_file(_part_name(name, number))

    def close(self) -> None:
        """Ends TensorBoard's thread and drops what was not flushed."""
        self._writer.close()


def iter_scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers among metrics by name; those of a nested mapping as "name/key"."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{key}", number) for key, number in iter_scalars(value))
        elif isinstance(value, int | float):
            yield name, value


def _part_name(name: str, number: int) -> str:
    return f"{name}.{number:06d}"


def write_hyperparameters(
    run: Run, values: dict[str, float | str], scores: dict[str, float]
) -> None:
    """Adds a trial to TensorBoard's HParams: its hyperparameters and its scores."""
    with tempfile.TemporaryDirectory(prefix="segan-tensorboard-") as folder:
        writer = SummaryWriter(folder)
        for summary in hparams(values, scores):
            writer._get_file_writer().add_summary(summary)
        for name, score in scores.items():
            writer.add_scalar(name, score)
        writer.close()
        run.fence()
        _upload(Path(folder).iterdir(), run)


def _upload(files: Iterable[Path], run: Run) -> None:
    for file in files:
        storage.write_bytes(storage.join(run.uri, "tensorboard", file.name), file.read_bytes())
