"""Commands that look into storage and bring checkpoints out of it: S3 credentials are enough."""

from __future__ import annotations

from typing import Annotated

import typer

from segan.cli.commands.options import Debug, Json
from segan.cli.console import print_json
from segan.errors import SeganError, UsageError

app = typer.Typer()
runs = typer.Typer(no_args_is_help=True, help="Runs in storage: which there are, what each did.")
checkpoints = typer.Typer(no_args_is_help=True, help="A run's checkpoints: list, fetch, verify.")
app.add_typer(runs, name="runs")
app.add_typer(checkpoints, name="checkpoints")

CheckpointName = Annotated[
    str | None, typer.Option(help="Of a run's: best, latest or a checkpoint's name; best else.")
]
CheckpointSource = Annotated[str, typer.Argument(help="URI of a run, or RUN/checkpoints/NAME.")]


@runs.command("ls", epilog="segan runs ls s3://bucket/runs")
def list_runs(
    uri: Annotated[str, typer.Argument(help="Folder or s3:// prefix that holds runs or studies.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the runs below a prefix, a study's trials too, by name."""
    from segan.cli.tables import show_runs
    from segan.runs.listing import find_runs

    found = find_runs(uri)
    if as_json:
        print_json([vars(summary) for summary in found])
        return
    show_runs(uri, found)


@runs.command("show", epilog="segan runs show s3://bucket/runs/first")
def show_run(
    uri: Annotated[str, typer.Argument(help="URI of a run; or of a study, for its leaderboard.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a run was asked for, on what it ran, its epochs and its checkpoints."""
    from segan import storage
    from segan.cli.tables import show_run_description
    from segan.runs.listing import describe_run, run_not_found

    place = storage.normalise(uri)
    storage.check_access(place)
    if storage.exists(storage.join(place, "study.json")):
        _show_study(place, as_json)
        return
    if not storage.exists(storage.join(place, "run.json")):
        raise run_not_found(place)
    found = describe_run(place)
    if as_json:
        print_json(found)
    else:
        show_run_description(found)


@checkpoints.command("ls", epilog="segan checkpoints ls s3://bucket/runs/first")
def list_checkpoints(
    run: Annotated[str, typer.Argument(help="URI of a run.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List a run's checkpoints: which are whole by their sizes, which is best and latest."""
    from segan import storage
    from segan.cli.tables import show_checkpoints
    from segan.runs import listing

    place = storage.normalise(run)
    storage.check_access(place)
    rows = [entry.to_dict() for entry in listing.list_checkpoints(place)]
    if not rows and not storage.exists(storage.join(place, "run.json")):
        raise listing.run_not_found(place)
    if as_json:
        print_json(rows)
    else:
        show_checkpoints(place, rows)


@checkpoints.command("pull", epilog="segan checkpoints pull s3://b/runs/first ./first --which best")
def download(
    source: CheckpointSource,
    out: Annotated[str, typer.Argument(help="Local folder for the files.", metavar="DEST")],
    name: CheckpointName = None,
    file_names: Annotated[
        list[str] | None, typer.Option(help="This file alone, as segmentor; can be given again.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Bring a checkpoint here, each file checked before it is put in place."""
    from segan.cli.console import echo, progress_bar
    from segan.runs import transfer
    from segan.runs.run import find_checkpoint

    checkpoint = find_checkpoint(source, name)
    files = transfer.choose_files(checkpoint, file_names or ())
    size = sum(checkpoint.files[file]["size"] for file in files)
    with progress_bar("pulling", size, in_bytes=True) as advance:
        downloaded = transfer.download_checkpoint(checkpoint, out, files, advance)
    if as_json:
        print_json({"checkpoint": checkpoint.uri, "files": files, "brought": downloaded})
    else:
        present = len(files) - len(downloaded)
        echo(f"{checkpoint.uri}: {len(downloaded)} files brought to {out}, {present} there already")


@checkpoints.command("verify", epilog="segan checkpoints verify s3://bucket/runs/first")
def verify(
    uri: Annotated[str, typer.Argument(help="URI of a run, a checkpoint or an ensemble.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every file against its manifest; of a run all checkpoints. Exit code 1 if any fails."""
    from segan.cli.console import echo, print_table, progress_bar
    from segan.runs import transfer

    found, incomplete = transfer.find_checkpoints(uri)
    size = sum(file["size"] for checkpoint in found for file in checkpoint.files.values())
    with progress_bar("verifying", size, in_bytes=True) as advance:
        checks = [
            one for checkpoint in found for one in transfer.verify_checkpoint(checkpoint, advance)
        ]
    for half in incomplete:
        echo(f"left out: {half}: half a checkpoint, which is never taken for a whole one")
    failed = [one for one in checks if one.error]
    if as_json:
        print_json([vars(one) for one in checks])
    else:
        rows = [
            ["/".join(one.uri.split("/")[-2:]), one.size, one.error or "as written"]
            for one in checks
        ]
        print_table(f"files at {uri}", ["file", "bytes", "found"], rows, left_columns=(0, 2))
    if failed:
        names = "; ".join(f"{one.uri.rsplit('/', 1)[0]}/{one.error}" for one in failed)
        raise SeganError(f"{len(failed)} of {len(checks)} files are not as written: {names}")


@checkpoints.command("url", epilog="segan checkpoints url s3://bucket/runs/first --expires 3600")
def url(
    source: CheckpointSource,
    file: Annotated[str, typer.Option(help="A file of the checkpoint.")] = "segmentor.safetensors",
    expires_in: Annotated[
        int, typer.Option(help="Seconds that the link holds, up to 7 days.")
    ] = 3600,
    name: CheckpointName = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a link by which anyone can download a file, without keys, until it expires."""
    from segan import storage
    from segan.cli.console import echo
    from segan.runs.checkpoint import MANIFEST_FILE
    from segan.runs.run import find_checkpoint
    from segan.storage import s3

    checkpoint = find_checkpoint(source, name)
    if file not in (*checkpoint.files, MANIFEST_FILE):
        known = ", ".join([*checkpoint.files, MANIFEST_FILE])
        raise UsageError(f"{checkpoint.uri}: no file {file!r}; expected one of {known}")
    link = s3.presign(storage.join(checkpoint.uri, file), expires_in)
    sha256 = checkpoint.files.get(file, {}).get("sha256")
    if as_json:
        print_json({"url": link, "checkpoint": checkpoint.uri, "file": file} | {"sha256": sha256})
        return
    echo(f"{checkpoint.uri}/{file} for {expires_in} s" + (f", sha256 {sha256}" if sha256 else ""))
    print(link)


def _show_study(uri: str, as_json: bool) -> None:
    from segan.cli.console import echo, show_study
    from segan.runs.study import Study

    rows = Study(uri).leaderboard_rows()
    if as_json:
        print_json({"study": uri, "trials": rows})
    elif rows:
        show_study(uri, rows)
        echo(f"a study; a trial of it is a run: segan runs show {uri}/trials/{rows[0]['trial']}")
    else:
        echo(f"{uri}: a study that has no trial yet")
