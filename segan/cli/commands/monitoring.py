"""Commands that follow a run or a study from any machine: its log, its progress, its trackers."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from segan.cli.commands.options import Debug, Json

app = typer.Typer()

RunOrStudy = Annotated[str, typer.Argument(metavar="URI", help="URI of a run or a study.")]
Interval = Annotated[float, typer.Option(min=0.1, help="Seconds between two readings of storage.")]


@app.command("logs", epilog="segan runs logs s3://bucket/runs/first --follow")
def show_log(
    uri: RunOrStudy,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Also print new lines, until the run has no driver."),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print driver.log: what the commands of a run or a study said, with its warnings and errors.

    With --json it is a list of lines; with --follow too, each line is an object of its own.
    """
    from segan.cli.console import print_json, stdout_console
    from segan.runs.driver_log import follow_log, read_log
    from segan.utils.text import escape_controls

    if as_json and not follow:
        print_json([line.to_dict() for line in read_log(uri)])
        return
    for line in follow_log(uri) if follow else read_log(uri):
        if as_json:
            print_json(line.to_dict())
        else:
            print(escape_controls(str(line)), file=stdout_console.file, flush=True)


@app.command("watch", epilog="segan runs watch s3://bucket/studies/first")
def watch(
    uri: RunOrStudy,
    once: Annotated[bool, typer.Option("--once", help="Show the current state and exit.")] = False,
    interval: Interval = 5.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show trials, rungs, the best so far and the time left, until the run or study has no driver.

    On a terminal as a table that is kept up to date, elsewhere as a line for each change; with
    --json one object for each reading.
    """
    from segan.cli.progress import show_progress, watch_progress
    from segan.report.progress import ProgressReader

    reader = ProgressReader(uri)
    if once:
        show_progress(reader.read(), as_json)
    else:
        watch_progress(reader, interval, as_json)


@app.command("track", epilog="segan runs track s3://bucket/studies/first --to mlflow --follow")
def track(
    uri: RunOrStudy,
    to: Annotated[Literal["mlflow", "wandb"], typer.Option(help="The tracker.")],
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Also copy what is new, until the run has no driver."),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy a run, or a study with its trials, to MLflow or to Weights & Biases.

    Copies configuration, metrics, report and log, not the weights. Repeat the command to go on
    where it was. Server, project and credentials are those of the tracker's own environment
    variables, such as MLFLOW_TRACKING_URI and WANDB_PROJECT.
    """
    from segan import storage
    from segan.cli.console import print_json, print_table
    from segan.tracking.copy import TrackerCopy
    from segan.tracking.copy import follow as follow_run
    from segan.tracking.tracker import open_tracker

    place = storage.normalise(uri)
    storage.check_access(place)
    copy = TrackerCopy(place, to, open_tracker(to))
    if follow:
        follow_run(copy)
    else:
        copy.update(final=True)
    rows = list(copy.counts.values())
    if as_json:
        print_json({"to": to, "items": [row.to_dict() for row in rows]})
    else:
        shown = [[storage.basename(row.uri), row.num_points, row.url or row.id] for row in rows]
        print_table(f"{place} in {to}", ["item", "new points", "page"], shown, (0, 2))
