"""What a person sees: a bar that moves on a terminal, plain lines elsewhere, tables at the end.

Everything for people goes to stderr; stdout is for results.
"""

from __future__ import annotations

import contextlib
import json
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

if TYPE_CHECKING:
    from segan.data.records import Manifest
    from segan.inference.ensemble import Ensemble
    from segan.training.loop import Status

people = Console(stderr=True)
results = Console()

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0, in_bytes: bool = False) -> Iterator[Advance]:
    """A bar over `total` things with rate and time left; yields what to call with a number done.

    `done` of them were there before. Not on a terminal, a line is written for each tenth of the
    work.
    """
    if not people.is_terminal:
        yield _by_tenths(what, total, done, in_bytes)
        return
    columns: tuple[ProgressColumn, ...] = (BarColumn(), MofNCompleteColumn(), RateColumn())
    if in_bytes:  # beside the name of a file there is no room for a bar
        columns = (DownloadColumn(), TransferSpeedColumn())
    columns = (TextColumn("{task.description}"), *columns, TimeRemainingColumn())
    with Progress(*columns, console=people) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda number: bar.update(task, advance=number)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says what is being done that has no parts to count; on a terminal, for how long already."""
    if not people.is_terminal:
        say(what)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=people) as bar:
        bar.add_task(what, total=None)
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
        self._validated = 0
        if people.is_terminal:
            self._progress = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[figures]}"),
                console=people,
            )

    def __enter__(self) -> TrainingDisplay:
        if self._progress:
            self._progress.start()
            self._task = self._progress.add_task("", total=None, epoch="", figures="starting")
        return self

    def __exit__(self, *_: Any) -> None:
        if self._progress:
            self._progress.stop()

    def __call__(self, status: Status) -> None:
        if self._progress:
            self._progress.update(
                self._task,
                total=status.total,
                completed=status.samples,
                epoch=f"{status.epoch}/{status.epochs}",
                figures=describe(status),
            )
        elif status.validated > self._validated:
            self._validated = status.validated
            people.print(
                f"epoch {status.epoch}/{status.epochs}  {describe(status)}", soft_wrap=True
            )


def describe(status: Status) -> str:
    """loss, Jaccard, images/s and time left of a training, in a line."""
    loss = "-" if status.segmentor_loss is None else f"{status.segmentor_loss:.4f}"
    jaccard = "-" if status.jaccard is None else f"{status.jaccard:.3f}"
    left = (status.total - status.samples) / max(status.images_per_second, 1e-9)
    return (
        f"loss {loss}  Jaccard {jaccard}  {status.images_per_second:.0f} images/s  "
        f"{timedelta(seconds=round(left))} left"
    )


def say(text: str) -> None:
    """A line for people."""
    people.print(text, soft_wrap=True, highlight=False, markup=False)


def answer(value: Any) -> None:
    """A result for programs: one line of JSON on stdout."""
    print(json.dumps(value), file=results.file)


@contextlib.contextmanager
def stdout_for_results() -> Iterator[None]:
    """Results go to what stdout is now, whatever `divert` makes of it while the block runs."""
    before, stdout = results.file, sys.stdout
    results.file = stdout
    try:
        yield
    finally:
        sys.stdout, results.file = stdout, before


def divert() -> None:
    """From here on, what a library prints goes to stderr: Ray's warnings, for one."""
    sys.stdout = sys.stderr


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    left: Sequence[int] = (0,),
) -> None:
    """A table of results on stdout, its columns to the right but for those in `left`."""
    results.print(title, soft_wrap=True, highlight=False, markup=False)
    shown = Table()
    for i, column in enumerate(columns):
        shown.add_column(
            column, justify="left" if i in left else "right", overflow="fold", no_wrap=i == 0
        )
    for row in rows:
        shown.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row))
    results.print(shown)


def show_records(uri: str, manifest: Manifest) -> None:
    """The records' splits, and where to read more about them."""
    if manifest.rejects:
        say(f"{manifest.rejects} of {manifest.inputs} pairs rejected, with reasons in the portrait")
    say(f"the data's portrait: {uri}/portrait.html")
    rows = [[split, manifest.rows(split), len(manifest.shards(split))] for split in manifest.splits]
    table(f"records at {uri}", ["split", "pairs", "shards"], rows)


def show_ensemble(uri: str, ensemble: Ensemble) -> None:
    """An ensemble's scores on validation beside its members', and those of each rule tried."""
    names = ["accuracy", "dice", "jaccard", "threshold"]
    alone = [member.info["metrics"] for member in ensemble.members]
    whole = ensemble.scores | {"threshold": ensemble.threshold}
    sources = [*(short_name(member.uri) for member in ensemble.members), ""]
    rows = [
        [f"member {i}" if source else "ensemble", *(scores[name] for name in names), source]
        for i, (scores, source) in enumerate(zip([*alone, whole], sources, strict=True), 1)
    ]
    title = f"ensemble at {uri} on {ensemble.validated_on}"
    table(title, ["", *names, "from"], rows, left=(0, 5))
    if len(ensemble.choices) > 1:
        tried = [
            [rule, one.jaccard, one.threshold, " ".join(map(short_name, one.members))]
            for rule, one in ensemble.choices.items()
        ]
        table("by rule", ["", "jaccard", "threshold", "members"], tried, left=(0, 3))
    if whole["jaccard"] < max(scores["jaccard"] for scores in alone):
        say("one member alone scores higher on validation; it is the better model, and cheaper")


def short_name(checkpoint: str) -> str:
    """<run>/epoch_00042 of a checkpoint's URI."""
    return "/".join(checkpoint.replace("/checkpoints/", "/").split("/")[-2:])


def show_study(uri: str, rows: Sequence[dict[str, Any]]) -> None:
    """A study's leaderboard on stdout, and what it cost."""
    keys = sorted({key for row in rows for key in row["parameters"]}, reverse=True)
    names = {"optimizer.learning_rate": "rate", "optimizer.clamp": "clamp", "logistic.final_k": "k"}
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
    table(f"{uri}, best first", columns, shown)
    epochs = sum(row["epochs"] for row in rows)
    results.print(
        f"best Jaccard {rows[0]['jaccard']:.4f}; {epochs} epochs in {len(rows)} trials",
        highlight=False,
    )


def _by_tenths(what: str, total: int, before: int, in_bytes: bool) -> Advance:
    began = time.monotonic()
    done, shown = before, before * 10 // max(total, 1)

    def line() -> str:
        rate = max(done - before, 1) / max(time.monotonic() - began, 1e-3)
        left = f"{timedelta(seconds=round((total - done) / rate))} left"
        if in_bytes:
            return f"{decimal(done)} of {decimal(total)}, {decimal(round(rate))}/s, {left}"
        return f"{done}/{total}, {rate:.1f}/s, {left}"

    def advance(number: int) -> None:
        nonlocal done, shown
        done += number
        if total and done * 10 // total > shown:
            shown = done * 10 // total
            say(f"{what} {line()}")

    return advance
