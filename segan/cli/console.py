"""The terminal: messages and progress on stderr, results on stdout.

On a terminal, progress is a moving bar; elsewhere it is plain lines.
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

from segan.utils.messages import LOGGERS, TRANSCRIPT
from segan.utils.text import escape_controls

if TYPE_CHECKING:
    from segan.training.trainer import TrainingProgress

stderr_console = Console(stderr=True)
stdout_console = Console()
transcript = logging.getLogger(TRANSCRIPT)

# A validation of this epoch or a later one that finds more of its wrong pixels saturated is warned
# of: earlier, a segmentor may still be far from its task.
SATURATION_WARNING_EPOCH = 5
MAX_WRONG_SATURATED_FRACTION = 0.5

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress_bar(
    description: str, total: int, completed: int = 0, in_bytes: bool = False
) -> Iterator[Advance]:
    """Shows progress with rate and time left; yields a function that adds to what is completed.

    Without a terminal, it writes a line for each tenth of the total.

    Args:
        total, completed: numbers of items, or of bytes if `in_bytes`.
    """
    if not stderr_console.is_terminal:
        yield _plain_progress(description, total, completed, in_bytes)
        return
    columns: tuple[ProgressColumn, ...] = (BarColumn(), MofNCompleteColumn(), RateColumn())
    if in_bytes:  # a file name leaves no space for a bar
        columns = (DownloadColumn(), TransferSpeedColumn())
    columns = (TextColumn("{task.description}", markup=False), *columns, TimeRemainingColumn())
    with Progress(*columns, console=stderr_console) as bar:
        task = bar.add_task(description, total=total, completed=completed)
        yield lambda number: bar.update(task, advance=number)


@contextlib.contextmanager
def spinner(description: str) -> Iterator[None]:
    """Shows a step of unknown length; on a terminal with the time elapsed."""
    if not stderr_console.is_terminal:
        echo(description)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=stderr_console) as bar:
        bar.add_task(description, total=None)
        yield


class RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        return Text(
            "" if task.speed is None else f"{task.speed:.1f}/s", style="progress.data.speed"
        )


class TrainingDisplay:
    """Shows a training's loss, Jaccard, images per second and time left."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._num_validations = 0
        self._warned_of_saturation = False
        if stderr_console.is_terminal:
            self._progress = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[status]}"),
                console=stderr_console,
            )

    def __enter__(self) -> TrainingDisplay:
        if self._progress:
            self._progress.start()
            self._task = self._progress.add_task("", total=None, epoch="", status="starting")
        return self

    def __exit__(self, *_: Any) -> None:
        if self._progress:
            self._progress.stop()

    def __call__(self, progress: TrainingProgress) -> None:
        self._show(progress)
        warning = "" if self._warned_of_saturation else saturation_warning(progress)
        if warning:
            self._warned_of_saturation = True
            echo(warning)

    def _show(self, progress: TrainingProgress) -> None:
        epoch, status = f"{progress.epoch}/{progress.total_epochs}", format_progress(progress)
        if self._progress:
            self._progress.update(
                self._task,
                total=progress.total_samples,
                completed=progress.samples,
                epoch=epoch,
                status=status,
            )
        if progress.num_validations > self._num_validations:
            self._num_validations = progress.num_validations
            if not self._progress:
                stderr_console.print(f"epoch {epoch}  {status}", soft_wrap=True)
            transcript.info(f"epoch {epoch}  {status}")


def format_progress(progress: TrainingProgress) -> str:
    """Loss, Jaccard, images per second and time left of a training, in one line."""
    loss = "-" if progress.segmentor_loss is None else f"{progress.segmentor_loss:.4f}"
    jaccard = "-" if progress.jaccard is None else f"{progress.jaccard:.3f}"
    left = (progress.total_samples - progress.samples) / max(progress.images_per_second, 1e-9)
    return (
        f"loss {loss}  Jaccard {jaccard}  {progress.images_per_second:.0f} images/s  "
        f"{timedelta(seconds=round(left))} left"
    )


def saturation_warning(progress: TrainingProgress) -> str:
    """What to do if most of the last validation's wrong pixels were saturated; else empty."""
    fraction = progress.wrong_saturated_fraction or 0.0
    if progress.epoch < SATURATION_WARNING_EPOCH or fraction <= MAX_WRONG_SATURATED_FRACTION:
        return ""
    return (
        f"warning: epoch {progress.epoch}: {fraction:.0%} of the wrong validation pixels are "
        "saturated (probability below 0.01 or above 0.99), so the segmentor hardly learns from "
        "them; raise loss.cross_entropy_weight, for example to 1"
    )


def echo(text: str) -> None:
    """Writes a message to stderr, and to driver.log while one is kept."""
    _print_line(text)
    transcript.info(text)


def echo_validation(trial: str, metrics: dict[str, Any], outcome: str = "") -> None:
    """Writes a line for a trial's validated epoch."""
    line = f"{trial}  epoch {metrics['epoch']}  Jaccard {metrics['jaccard']:.3f}"
    echo(f"{line}  {outcome}" if outcome else line)


class ConsoleHandler(logging.Handler):
    """Writes log messages to stderr as plain lines."""

    def emit(self, record: logging.LogRecord) -> None:
        _print_line(record.getMessage())


def show_log_messages() -> None:
    """Shows the log messages of `segan` and `ray_jobs`, from INFO up, in this process."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
            logger.addHandler(ConsoleHandler())


def _print_line(text: str) -> None:
    stderr_console.print(
        escape_controls(text), soft_wrap=True, highlight=False, markup=False, emoji=False
    )


def print_json(value: Any) -> None:
    """Writes a result as one line of JSON to stdout."""
    print(json.dumps(value), file=stdout_console.file)


@contextlib.contextmanager
def preserve_stdout() -> Iterator[None]:
    """Within the block, results go to the current stdout, even after a redirection."""
    before, stdout = stdout_console.file, sys.stdout
    stdout_console.file = stdout
    try:
        yield
    finally:
        sys.stdout, stdout_console.file = stdout, before


def redirect_stdout_to_stderr() -> None:
    """From now on, what a library prints goes to stderr, for example Ray's warnings."""
    sys.stdout = sys.stderr


# Columns of the terminal. A longer name folds, or it would leave no room for the other columns.
MAX_UNFOLDED_NAME = 40
MIN_NAME_WIDTH = 12


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    left_columns: Sequence[int] = (0,),
) -> None:
    """Prints a table on stdout; `left_columns` are left-aligned, the others right-aligned."""
    stdout_console.print(
        escape_controls(title), soft_wrap=True, highlight=False, markup=False, emoji=False
    )
    transcript.info(title)
    for row in rows:
        transcript.info("  ".join(_format_cell(value) for value in row))
    table = make_table(columns, rows, left_columns)
    if _min_width(table) <= stdout_console.width:
        stdout_console.print(table)
        return
    for name, *values in rows:  # each value on a line of its own, since columns would cut them up
        stdout_console.print(Text(_format_cell(name)))
        for column, value in zip(columns[1:], values, strict=True):
            stdout_console.print(Text(f"  {column}: {_format_cell(value)}"))


def make_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], left_columns: Sequence[int] = (0,)
) -> Table:
    """The table that `print_table` prints."""
    # As Text, since a string with brackets would be read as markup.
    cells = [[Text(_format_cell(value)) for value in row] for row in rows]
    names_fit = all(row[0].cell_len <= MAX_UNFOLDED_NAME for row in cells)
    table = Table(show_edge=False)  # room for a leaderboard on 80 columns
    for i, column in enumerate(columns):
        words = ["", *column.split(), *(word for row in cells for word in row[i].plain.split())]
        table.add_column(
            Text(column),
            justify="left" if i in left_columns else "right",
            overflow="fold",
            no_wrap=i == 0 and names_fit,
            min_width=max(map(len, words)) if i or names_fit else MIN_NAME_WIDTH,
        )
    for row in cells:
        table.add_row(*row)
    return table


def _min_width(table: Table) -> int:
    """The width of the terminal in which no word is cut up, but for a name that is folded."""
    return sum(3 + (column.min_width or 0) for column in table.columns)


def _format_cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return escape_controls(str(value)).replace("\n", "\\n").replace("\t", "\\t")


def _plain_progress(description: str, total: int, initial: int, in_bytes: bool) -> Advance:
    started_at = time.monotonic()
    completed, shown = initial, initial * 10 // max(total, 1)

    def line() -> str:
        rate = max(completed - initial, 1) / max(time.monotonic() - started_at, 1e-3)
        left = f"{timedelta(seconds=round((total - completed) / rate))} left"
        if in_bytes:
            return f"{decimal(completed)} of {decimal(total)}, {decimal(round(rate))}/s, {left}"
        return f"{completed}/{total}, {rate:.1f}/s, {left}"

    def advance(number: int) -> None:
        nonlocal completed, shown
        completed += number
        if total and completed * 10 // total > shown:
            shown = completed * 10 // total
            echo(f"{description} {line()}")

    return advance
