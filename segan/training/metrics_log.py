"""What a run writes of itself as it goes: metrics.jsonl and TensorBoard, in the run's folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from segan import storage
from segan.runs.run import Run


class MetricsLog:
    """Lines of metrics and TensorBoard's curves of the same numbers.

    Lines are kept in memory and written whole at each flush: a bucket cannot be appended to, and
    a resumed run takes back the lines up to where its checkpoint stands, so that no step is
    there twice and none is missing.
    """

    def __init__(self, run: Run, samples: int):
        self.run = run
        self.lines = [line for line in run.metrics() if line["samples"] <= samples]
        self._folder = tempfile.TemporaryDirectory(prefix="segan-tensorboard-")
        self._writer = SummaryWriter(self._folder.name, purge_step=samples + 1)

    def write(self, kind: str, samples: int, values: dict[str, Any]) -> None:
        """Adds a line; its numbers become points at `samples` in TensorBoard.

        Args:
            kind: "step" or "epoch".
        """
        self.lines.append({"kind": kind, "samples": samples, **values})
        for name, value in values.items():
            if isinstance(value, int | float) and name not in ("epoch", "step"):
                self._writer.add_scalar(f"{kind}/{name}", value, samples)

    def flush(self) -> None:
        """Brings both into storage."""
        self.run.write_metrics(self.lines)
        self._writer.flush()
        _upload(Path(self._folder.name), self.run)

    def close(self) -> None:
        """Ends TensorBoard's thread; what was not flushed is left out."""
        self._writer.close()
        self._folder.cleanup()


def write_hyperparameters(
    run: Run, values: dict[str, float | str], scores: dict[str, float]
) -> None:
    """Adds a trial's line to TensorBoard's HParams: its point of the search, and how it did."""
    with tempfile.TemporaryDirectory(prefix="segan-tensorboard-") as folder:
        writer = SummaryWriter(folder)
        for summary in hparams(values, scores):
            writer._get_file_writer().add_summary(summary)
        for name, score in scores.items():
            writer.add_scalar(name, score)
        writer.close()
        _upload(Path(folder), run)


def _upload(folder: Path, run: Run) -> None:
    for file in folder.iterdir():
        storage.write_bytes(storage.join(run.uri, "tensorboard", file.name), file.read_bytes())
