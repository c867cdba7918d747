"""Commands that list, download and verify runs and checkpoints; they need only S3 credentials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segan.cli.commands import monitoring
from segan.cli.commands.options import (
    FOLDER,
    OUT,
    Debug,
    Json,
    ModelArgument,
    complete_model,
)
from segan.cli.console import print_json
from segan.errors import SeganError, UsageError

if TYPE_CHECKING:
    from segan.runs.checkpoint import Checkpoint

REPORT = "report"  # the word of --file for report.json and report.html

app = typer.Typer()
runs = typer.Typer(no_args_is_help=True, help="List and show runs in storage.")
checkpoints = typer.Typer(
    no_args_is_help=True, help="List, download and verify the checkpoints of a run."
)
runs.add_typer(monitoring.app)
app.add_typer(runs, name="runs")
app.add_typer(checkpoints, name="checkpoints")

CheckpointSource = Annotated[
    str,
    typer.Argument(metavar="CHECKPOINT", help="URI of a run, a study or RUN/checkpoints/NAME."),
]
ModelSource = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        autocompletion=complete_model,
        help="Name of a model that ships with segan, or URI of a run, RUN/checkpoints/NAME, a "
        "study or an ensemble.",
    ),
]
CheckpointName = Annotated[
    str | None,
    typer.Option(help="Which checkpoint of a run: its name, best or latest; default: best."),
]


@runs.command("ls", epilog="segan runs ls s3://bucket/runs")
def list_runs(
    uri: Annotated[str, typer.Argument(metavar="URI", help=f"{FOLDER} with runs or studies.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List all runs below a URI by name, including the trials of studies."""
    from segan.cli.tables import show_runs
    from segan.runs.listing import find_runs

    summaries = find_runs(uri)
    if as_json:
        print_json([vars(summary) for summary in summaries])
    else:
        show_runs(uri, summaries)


@runs.command("show", epilog="segan runs show s3://bucket/runs/first")
def show_run(
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="URI of a run, or of a study for its leaderboard.")
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a run's configuration, hardware, epochs and checkpoints, or a study's leaderboard."""
    from segan import storage
    from segan.cli.tables import show_run_description
    from segan.runs.listing import describe_run, open_run
    from segan.runs.study import STUDY_FILE

    place = storage.normalise(uri)
    storage.check_access(place)
    if storage.exists(storage.join(place, STUDY_FILE)):
        _show_study(place, as_json)
        return
    description = describe_run(open_run(place))
    if as_json:
        print_json(description)
    else:
        show_run_description(description)


@checkpoints.command("ls", epilog="segan checkpoints ls s3://bucket/runs/first")
def list_checkpoints(
    run: Annotated[str, typer.Argument(metavar="RUN", help="URI of a run.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List a run's checkpoints: which are complete, which is the best and which the latest.

    Compares file sizes only; `segan checkpoints verify` compares checksums.
    """
    from segan import storage
    from segan.cli.tables import show_checkpoints
    from segan.runs import listing

    place = storage.normalise(run)
    storage.check_access(place)
    rows = [entry.to_dict() for entry in listing.list_checkpoints(place)]
    if not rows:
        listing.open_run(place)  # raises the error that names what is here instead
    if as_json:
        print_json(rows)
    else:
        show_checkpoints(place, rows)


@checkpoints.command(
    "download", epilog="segan checkpoints download s3://b/runs/first ./first --name best"
)
def download(
    source: ModelSource,
    out: Annotated[str, typer.Argument(metavar=OUT, help="Local folder for the files.")],
    name: CheckpointName = None,
    file: Annotated[
        list[str] | None,
        typer.Option(help="Download only this file, such as segmentor or report; can be repeated."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Download a checkpoint, the best one of a study, or an ensemble, and verify its weights.

    The report of a run, study or ensemble comes with --file report.
    """
    from segan import storage
    from segan.cli.console import echo
    from segan.runs.ensemble import is_ensemble
    from segan.runs.run import REPORT_FILES
    from segan.runs.shipped import locate_model
    from segan.runs.transfer import download_report

    model, place = locate_model(source)
    storage.check_access(place)
    names = file or []
    files = [name for name in names if name != REPORT]
    result: dict[str, Any] = {"files": [], "downloaded": []}
    if files or not names:
        if is_ensemble(place):
            result = _download_ensemble(model, place, out, name, files)
        else:
            result = _download_checkpoint(place, out, name, files)
    if REPORT in names:
        result["downloaded"] += download_report(place, out)
        result["files"] += REPORT_FILES
    if as_json:
        print_json(result)
        return
    count, total = len(result["downloaded"]), len(result["files"])
    echo(
        f"{result.get('checkpoint', model)}: {count} of {total} files downloaded to {out}, "
        f"{total - count} present before"
    )


def _download_ensemble(
    model: str, uri: str, out: str, name: str | None, files: Sequence[str]
) -> dict[str, Any]:
    from segan.cli.console import progress_bar
    from segan.runs.ensemble import CARD_FILE, ENSEMBLE_FILE, read_ensemble
    from segan.runs.transfer import download_ensemble

    if name or files:
        raise UsageError(
            f"{model}: an ensemble, which is downloaded as a whole; leave --name away, and use "
            f"--file for its {REPORT} only"
        )
    members = read_ensemble(uri).checkpoints(uri)
    size = sum(entry["size"] for member in members for entry in member.files.values())
    with progress_bar("downloading", size, in_bytes=True) as advance:
        downloaded = download_ensemble(uri, out, advance)
    weights = [f"{i}/{file}" for i, member in enumerate(members, 1) for file in member.files]
    return {
        "ensemble": model,
        "files": [*weights, CARD_FILE, ENSEMBLE_FILE],
        "downloaded": downloaded,
    }


def _download_checkpoint(
    uri: str, out: str, name: str | None, file_names: Sequence[str]
) -> dict[str, Any]:
    from segan.cli.console import progress_bar
    from segan.runs.transfer import download_checkpoint

    checkpoint, files = _find_files(uri, name, file_names)
    size = sum(checkpoint.files[file]["size"] for file in files)
    with progress_bar("downloading", size, in_bytes=True) as advance:
        downloaded = download_checkpoint(checkpoint, out, files, advance)
    return {"checkpoint": checkpoint.uri, "files": files, "downloaded": downloaded}


@checkpoints.command("verify", epilog="segan checkpoints verify s3://bucket/runs/first")
def verify(
    uri: ModelArgument,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare the checksum of every file with the manifest.

    Verifies all checkpoints of a run, or all members of an ensemble. Exit code 1 if a file differs.
    """
    from segan.cli.console import echo, print_table, progress_bar
    from segan.runs.transfer import find_checkpoints, verify_checkpoint

    found, incomplete = find_checkpoints(uri)
    size = sum(file["size"] for checkpoint in found for file in checkpoint.files.values())
    with progress_bar("verifying", size, in_bytes=True) as advance:
        checks = [check for checkpoint in found for check in verify_checkpoint(checkpoint, advance)]
    for error in incomplete:
        echo(f"skipped an incomplete checkpoint, which is never used: {error}")
    failed = [check for check in checks if check.error]
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        rows = [
            ["/".join(check.uri.split("/")[-2:]), check.size, check.error or "intact"]
            for check in checks
        ]
        print_table(f"files at {uri}", ["file", "bytes", "state"], rows, left_columns=(0, 2))
    if failed:
        errors = "; ".join(f"{check.uri.rsplit('/', 1)[0]}/{check.error}" for check in failed)
        raise SeganError(f"{len(failed)} of {len(checks)} files are corrupted or missing: {errors}")


@checkpoints.command("url", epilog="segan checkpoints url s3://bucket/runs/first --expires-in 3600")
def url(
    source: CheckpointSource,
    file: Annotated[
        str, typer.Option(help="File of the checkpoint, or manifest.json.")
    ] = "segmentor.safetensors",
    expires_in: Annotated[
        int, typer.Option(help="Seconds until the URL expires; at most 7 days.")
    ] = 3600,
    name: CheckpointName = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a presigned URL: anyone who has it can download the file until it expires."""
    from segan import storage
    from segan.cli.console import echo
    from segan.runs.checkpoint import MANIFEST_FILE
    from segan.storage import s3

    checkpoint, files = _find_files(source, name, () if file == MANIFEST_FILE else (file,))
    name_in_folder = MANIFEST_FILE if file == MANIFEST_FILE else files[0]
    link = s3.presign(storage.join(checkpoint.uri, name_in_folder), expires_in)
    sha256 = checkpoint.files.get(name_in_folder, {}).get("sha256")
    if as_json:
        description = {"checkpoint": checkpoint.uri, "file": name_in_folder, "sha256": sha256}
        print_json({"url": link, **description})
        return
    checksum = f", sha256 {sha256}" if sha256 else ""
    echo(f"{checkpoint.uri}/{name_in_folder}, valid for {expires_in} s{checksum}")
    print(link)


def _find_files(
    source: str, name: str | None, file_names: Sequence[str]
) -> tuple[Checkpoint, list[str]]:
    """A checkpoint and the names of the files that are asked for; all if `file_names` is empty."""
    from segan.runs.transfer import choose_files, find_model

    checkpoint = find_model(source, name)
    return checkpoint, choose_files(checkpoint, file_names)


def _show_study(uri: str, as_json: bool) -> None:
    from segan.cli.console import echo
    from segan.cli.tables import show_study
    from segan.runs.study import Study

    rows = Study(uri).leaderboard_rows()
    if as_json:
        print_json({"study": uri, "trials": [asdict(row) for row in rows]})
    elif rows:
        show_study(uri, rows)
        echo(f"each trial is a run: segan runs show {uri}/trials/{rows[0].trial}")
    else:
        echo(f"{uri}: a study without trials yet")
