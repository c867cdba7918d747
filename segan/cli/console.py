"""What a person sees: a bar that moves on a terminal, plain lines elsewhere, tables at the end.

Everything for people goes to stderr; stdout is for results.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from segan.runs.checkpoint import short_name

if TYPE_CHECKING:
    from segan.data.records.format import Manifest
    from segan.runs.ensemble import Ensemble
    from segan.training.trainer import TrainingProgress

stderr_console = Console(stderr=True)
stdout_console = Console()

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress_bar(
    description: str, total: int, completed: int = 0, in_bytes: bool = False
) -> Iterator[Advance]:
    """A bar over `total` things with rate and time left; yields what to call with a number done.

    `done` of them were there before. Not on a terminal, a line is written for each tenth of the
    work.
    """
    if not stderr_console.is_terminal:
        yield _plain_progress(description, total, completed, in_bytes)
        return
    columns: tuple[ProgressColumn, ...] = (BarColumn(), MofNCompleteColumn(), RateColumn())
    if in_bytes:  # beside the name of a file there is no room for a bar
        columns = (DownloadColumn(), TransferSpeedColumn())
    columns = (TextColumn("{task.description}"), *columns, TimeRemainingColumn())
    with Progress(*columns, console=stderr_console) as bar:
        task = bar.add_task(description, total=total, completed=completed)
        yield lambda number: bar.update(task, advance=number)


@contextlib.contextmanager
def spinner(description: str) -> Iterator[None]:
    """Says what is being done that has no parts to count; on a terminal, for how long already."""
    if not stderr_console.is_terminal:
        echo(description)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=stderr_console) as bar:
        bar.add_task(description, total=None)
        yield


class RateColumn(ProgressColumn):
    """Things a second."""

    def render(self, task: Task) -> Text:
        return Text(
            "" if task.speed is None else f"{task.speed:.1f}/s", style="progress.data.speed"
        )


class TrainingDisplay:
    """Shows a training's status: loss, Jaccard, images/s and time left."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._num_validations = 0
        if stderr_console.is_terminal:
            self._progress = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[figures]}"),
                console=stderr_console,
            )

    def __enter__(self) -> TrainingDisplay:
        if self._progress:
            self._progress.start()
            self._task = self._progress.add_task("", total=None, epoch="", figures="starting")
        return self

    def __exit__(self, *_: Any) -> None:
        if self._progress:
            self._progress.stop()

    def __call__(self, progress: TrainingProgress) -> None:
        if self._progress:
            self._progress.update(
                self._task,
                total=progress.total_samples,
                completed=progress.samples,
                epoch=f"{progress.epoch}/{progress.total_epochs}",
                figures=format_progress(progress),
            )
        elif progress.num_validations > self._num_validations:
            self._num_validations = progress.num_validations
            stderr_console.print(
                f"epoch {progress.epoch}/{progress.total_epochs}  {format_progress(progress)}",
                soft_wrap=True,
            )


def format_progress(progress: TrainingProgress) -> str:
    """loss, Jaccard, images/s and time left of a training, in a line."""
    loss = "-" if progress.segmentor_loss is None else f"{progress.segmentor_loss:.4f}"
    jaccard = "-" if progress.jaccard is None else f"{progress.jaccard:.3f}"
    left = (progress.total_samples - progress.samples) / max(progress.images_per_second, 1e-9)
    return (
        f"loss {loss}  Jaccard {jaccard}  {progress.images_per_second:.0f} images/s  "
        f"{timedelta(seconds=round(left))} left"
    )


def echo(text: str) -> None:
    """A line for people."""
    stderr_console.print(text, soft_wrap=True, highlight=False, markup=False)


class ConsoleHandler(logging.Handler):
    """Writes the messages of the library's loggers to stderr as plain lines."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(record.getMessage())


def show_log_messages() -> None:
    """Shows what `segan` and `ray_jobs` log, from INFO up, on this process's console."""
    for name in ("segan", "ray_jobs"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
            logger.addHandler(ConsoleHandler())


def print_json(value: Any) -> None:
    """A result for programs: one line of JSON on stdout."""
    print(json.dumps(value), file=stdout_console.file)


@contextlib.contextmanager
def preserve_stdout() -> Iterator[None]:
    """Results go to what stdout is now, whatever `divert` makes of it while the block runs."""
    before, stdout = stdout_console.file, sys.stdout
    stdout_console.file = stdout
    try:
        yield
    finally:
        sys.stdout, stdout_console.file = stdout, before


def redirect_stdout_to_stderr() -> None:
    """From here on, what a library prints goes to stderr: Ray's warnings, for one."""
    sys.stdout = sys.stderr


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    left_columns: Sequence[int] = (0,),
) -> None:
    """A table of results on stdout, its columns to the right but for those in `left`."""
    stdout_console.print(title, soft_wrap=True, highlight=False, markup=False)
    shown = Table()
    for i, column in enumerate(columns):
        shown.add_column(
            column,
            justify="left" if i in left_columns else "right",
            overflow="fold",
            no_wrap=i == 0,
        )
    for row in rows:
        shown.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row))
    stdout_console.print(shown)


def show_records(uri: str, manifest: Manifest) -> None:
    """The records' splits, and where to read more about them."""
    if manifest.num_rejects:
        echo(
            f"{manifest.num_rejects} of {manifest.num_inputs} pairs rejected, with reasons "
            f"in the data profile"
        )
    echo(f"data profile: {uri}/profile.html")
    rows = [
        [split, manifest.num_rows(split), len(manifest.shards(split))] for split in manifest.splits
    ]
    print_table(f"records at {uri}", ["split", "pairs", "shards"], rows)


def show_ensemble(uri: str, ensemble: Ensemble) -> None:
    """An ensemble's scores on validation beside its members', and those of each rule tried."""
    names = ["accuracy", "dice", "jaccard", "threshold"]
    member_scores = [member.info["metrics"] for member in ensemble.members]
    ensemble_scores = ensemble.scores | {"threshold": ensemble.threshold}
    sources = [*(short_name(member.uri) for member in ensemble.members), ""]
    rows = [
        [f"member {i}" if source else "ensemble", *(scores[name] for name in names), source]
        for i, (scores, source) in enumerate(
            zip([*member_scores, ensemble_scores], sources, strict=True), 1
        )
    ]
    title = f"ensemble at {uri} on {ensemble.validation_split}"
    print_table(title, ["", *names, "from"], rows, left_columns=(0, 5))
    if len(ensemble.choices) > 1:
        tried = [
            [rule, one.jaccard, one.threshold, " ".join(map(short_name, one.members))]
            for rule, one in ensemble.choices.items()
        ]
        print_table("by rule", ["", "jaccard", "threshold", "members"], tried, left_columns=(0, 3))
    if ensemble_scores["jaccard"] < max(scores["jaccard"] for scores in member_scores):
        echo("one member alone scores higher on validation; it is the better model, and cheaper")


def show_study(uri: str, rows: Sequence[dict[str, Any]]) -> None:
    """A study's leaderboard on stdout, and what it cost."""
    keys = sorted({key for row in rows for key in row["parameters"]}, reverse=True)
    names = {
        "optimizer.learning_rate": "rate",
        "optimizer.weight_clip": "clamp",
        "logistic.final_k": "k",
    }
    shown = [
        [
            row["trial"],
            *(f"{row['parameters'][key]:.3g}" for key in keys),
            row["jaccard"],
            "-" if row["threshold"] is None else f"{row['threshold']:g}",
            f"{row['epoch']} of {row['epochs']}",
            "given up" if row["why"].startswith("given up") else row["why"],
        ]
        for row in rows
    ]
    columns = ["trial", *(names[key] for key in keys), "jaccard", "threshold", "epoch", "why"]
    print_table(f"{uri}, best first", columns, shown)
    epochs = sum(row["epochs"] for row in rows)
    stdout_console.print(
        f"best Jaccard {rows[0]['jaccard']:.4f}; {epochs} epochs in {len(rows)} trials",
        highlight=False,
    )


def _plain_progress(description: str, total: int, initial: int, in_bytes: bool) -> Advance:
    began = time.monotonic()
    done, shown = initial, initial * 10 // max(total, 1)

    def line() -> str:
        rate = max(done - initial, 1) / max(time.monotonic() - began, 1e-3)
        left = f"{timedelta(seconds=round((total - done) / rate))} left"
        if in_bytes:
            return f"{decimal(done)} of {decimal(total)}, {decimal(round(rate))}/s, {left}"
        return f"{done}/{total}, {rate:.1f}/s, {left}"

    def advance(number: int) -> None:
        nonlocal done, shown
        done += number
        if total and done * 10 // total > shown:
            shown = done * 10 // total
            echo(f"{description} {line()}")

    return advance
