"""A run's metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from segan import storage
from segan.runs.run import Run
from segan.training.event_writer import EventWriter
from segan.training.metrics import EpochMetrics, StepMetrics


class MetricsLog:
    """Writes metrics as lines of metrics.jsonl and as TensorBoard scalars.

    Object storage has no append, so all lines are kept in memory and each flush writes them all. A
    resumed run drops the lines beyond its checkpoint, so that each step has exactly one line.
    """

    def __init__(self, run: Run, samples: int):
        """
        Args:
            samples: seen at the checkpoint that the run resumes from; 0 for a new run.
        """
        self.run = run
        self.lines = [line for line in run.metrics() if line["samples"] <= samples]
        self._writer = EventWriter(purge_step=samples + 1)

    def write(self, metrics: StepMetrics | EpochMetrics, samples: int) -> None:
        """Adds a line; its numbers become TensorBoard scalars at the step `samples`."""
        values = metrics.to_dict()
        self.lines.append({"kind": metrics.kind, "samples": samples, **values})
        for name, value in iter_scalars(values):
            if name not in ("epoch", "step"):
                self._writer.add_scalar(f"{metrics.kind}/{name}", value, samples)

    def flush(self) -> None:
        """Writes both to storage."""
        self.run.write_metrics(self.lines)
        self._writer.flush()
        _upload(self._writer.files(), self.run)

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
