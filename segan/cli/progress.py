"""The progress of a run or a study on the terminal: a live table, or a line for each change."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Group
from rich.live import Live
from rich.text import Text

from segan import storage
from segan.cli.console import make_table, print_json, stdout_console
from segan.cli.tables import format_parameters
from segan.report.progress import Progress, ProgressReader, describe_progress
from segan.report.search import TrialSummary
from segan.runs.trial import TrialStatus

ROWS_AROUND_TABLE = 9  # of the terminal: title, headings, rungs, the last line


def watch_progress(reader: ProgressReader, interval_s: float, as_json: bool) -> None:
    """Shows the progress until no driver holds the run or study; at least once."""
    if as_json or not stdout_console.is_terminal:
        shown: set[str] = set()
        for progress in _poll(reader, interval_s):
            if as_json:
                print_json(to_json(progress))
                continue
            for line in describe_changes(progress, shown):
                print(line, file=stdout_console.file, flush=True)
        return
    with Live(console=stdout_console, auto_refresh=False) as live:
        for progress in _poll(reader, interval_s):
            live.update(render_progress(progress, stdout_console.height), refresh=True)


def show_progress(progress: Progress, as_json: bool) -> None:
    """Prints the progress once."""
    if as_json:
        print_json(to_json(progress))
    else:
        stdout_console.print(render_progress(progress))


def to_json(progress: Progress) -> dict[str, object]:
    """The progress as JSON values, without the curves."""
    content: dict[str, object] = progress.model_dump(
        mode="json", exclude={"trials": {"__all__": {"best_jaccards"}}}
    )
    return content


def render_progress(progress: Progress, height: int | None = None) -> Group:
    """A table of the trials, the rungs and one line of summary.

    Args:
        height: of the terminal in lines; the trials that do not fit are counted.
    """
    limit = max(3, height - ROWS_AROUND_TABLE) if height else len(progress.trials)
    keys, parameters = format_parameters([trial.parameters for trial in progress.trials])
    columns = ["trial", *keys, "jaccard", "at", "epochs", "state"]
    rows = [
        [
            trial.name,
            *values,
            trial.jaccard if trial.best_jaccards else None,
            trial.best_epoch or None,
            f"{trial.epochs}/{progress.total_epochs}",
            _format_state(trial),
        ]
        for trial, values in zip(progress.trials, parameters, strict=True)
    ]
    lines = [describe_progress(progress)]
    if len(rows) > limit:
        lines.insert(0, f"... and {len(rows) - limit} more trials")
    if progress.rungs:
        rungs = (f"{r.epoch}: {r.num_promoted}/{r.num_reached}" for r in progress.rungs)
        lines.insert(0, f"promoted/reached at the rungs' epochs: {', '.join(rungs)}")
    title = f"{progress.kind} {progress.uri} at {progress.read_at.removesuffix('+00:00')} UTC"
    table = make_table(columns, rows[:limit], left_columns=(0, len(columns) - 1))
    return Group(Text(title), table, *map(Text, lines))


def describe_changes(progress: Progress, shown: set[str]) -> Iterator[str]:
    """Yields what a plain log should say; `shown` holds what it has said before."""
    lines = [_describe_trial(trial, progress) for trial in progress.trials]
    new = [line for line in lines if line not in shown]
    shown.update(new)
    yield from new
    if new or not shown:
        yield f"{storage.basename(progress.uri)}: {describe_progress(progress)}"


def _describe_trial(trial: TrialSummary, progress: Progress) -> str:
    jaccard = f"  best Jaccard {trial.jaccard:.4f}" if trial.best_jaccards else ""
    state = _format_state(trial)
    return f"{trial.name}  epoch {trial.epochs}/{progress.total_epochs}{jaccard}  {state}"


def _format_state(trial: TrialSummary) -> str:
    if trial.status is TrialStatus.UNFINISHED:
        return trial.reason
    return str(trial.status)


def _poll(reader: ProgressReader, interval_s: float) -> Iterator[Progress]:
    while True:
        progress = reader.read()
        yield progress
        if progress.host is None:
            return
        time.sleep(interval_s)
