"""Commands that look into storage and bring checkpoints out of it: S3 credentials are enough."""

from __future__ import annotations

from typing import Annotated

import typer

from segan.commands.options import Debug, Json
from segan.errors import SeganError, UsageError
from segan.terminal import answer

app = typer.Typer()
runs = typer.Typer(no_args_is_help=True, help="Runs in storage: which there are, what each did.")
checkpoints = typer.Typer(no_args_is_help=True, help="A run's checkpoints: list, fetch, verify.")
app.add_typer(runs, name="runs")
app.add_typer(checkpoints, name="checkpoints")

Which = Annotated[
    str | None, typer.Option(help="Of a run's: best, latest or a checkpoint's name; best else.")
]
Source = Annotated[str, typer.Argument(help="URI of a run, or RUN/checkpoints/NAME.")]


@runs.command("ls", epilog="segan runs ls s3://bucket/runs")
def list_runs(
    uri: Annotated[str, typer.Argument(help="Folder or s3:// prefix that holds runs or studies.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the runs below a prefix, a study's trials too, by name."""
    from segan.catalogue import find_runs
    from segan.commands.tables import show_runs

    found = find_runs(uri)
    if as_json:
        answer([vars(summary) for summary in found])
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
    from segan.catalogue import describe_run, no_run
    from segan.commands.tables import show_description

    place = storage.normalise(uri)
    storage.check_access(place)
    if storage.exists(storage.join(place, "study.json")):
        _show_study(place, as_json)
        return
    if not storage.exists(storage.join(place, "run.json")):
        raise no_run(place)
    found = describe_run(place)
    if as_json:
        answer(found)
    else:
        show_description(found)


@checkpoints.command("ls", epilog="segan checkpoints ls s3://bucket/runs/first")
def list_checkpoints(
    run: Annotated[str, typer.Argument(help="URI of a run.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List a run's checkpoints: which are whole by their sizes, which is best and latest."""
    from segan import catalogue, storage
    from segan.commands.tables import show_checkpoints

    place = storage.normalise(run)
    storage.check_access(place)
    rows = [entry.row() for entry in catalogue.list_checkpoints(place)]
    if not rows and not storage.exists(storage.join(place, "run.json")):
        raise catalogue.no_run(place)
    if as_json:
        answer(rows)
    else:
        show_checkpoints(place, rows)


@checkpoints.command("pull", epilog="segan checkpoints pull s3://b/runs/first ./first --which best")
def pull(
    source: Source,
    folder: Annotated[str, typer.Argument(help="Local folder for the files.", metavar="DEST")],
    which: Which = None,
    only: Annotated[
        list[str] | None, typer.Option(help="This file alone, as segmentor; can be given again.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Bring a checkpoint here, each file checked before it is put in place."""
    from segan import retrieval
    from segan.runs import find_checkpoint
    from segan.terminal import progress, say

    checkpoint = find_checkpoint(source, which)
    files = retrieval.choose_files(checkpoint, only or ())
    size = sum(checkpoint.files[file]["size"] for file in files)
    with progress("pulling", size, in_bytes=True) as advance:
        brought = retrieval.pull(checkpoint, folder, files, advance)
    if as_json:
        answer({"checkpoint": checkpoint.uri, "files": files, "brought": brought})
    else:
        there = len(files) - len(brought)
        say(f"{checkpoint.uri}: {len(brought)} files brought to {folder}, {there} there already")


@checkpoints.command("verify", epilog="segan checkpoints verify s3://bucket/runs/first")
def verify(
    uri: Annotated[str, typer.Argument(help="URI of a run, a checkpoint or an ensemble.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every file against its manifest; of a run all checkpoints. Exit code 1 if any fails."""
    from segan import retrieval
    from segan.terminal import progress, say, table

    found, halves = retrieval.checkpoints_at(uri)
    size = sum(file["size"] for checkpoint in found for file in checkpoint.files.values())
    with progress("verifying", size, in_bytes=True) as advance:
        verified = [one for checkpoint in found for one in retrieval.verify(checkpoint, advance)]
    for half in halves:
        say(f"left out: {half}: half a checkpoint, which is never taken for a whole one")
    wrong = [one for one in verified if one.wrong]
    if as_json:
        answer([vars(one) for one in verified])
    else:
        rows = [
            ["/".join(one.uri.split("/")[-2:]), one.size, one.wrong or "as written"]
            for one in verified
        ]
        table(f"files at {uri}", ["file", "bytes", "found"], rows, left=(0, 2))
    if wrong:
        names = "; ".join(f"{one.uri.rsplit('/', 1)[0]}/{one.wrong}" for one in wrong)
        raise SeganError(f"{len(wrong)} of {len(verified)} files are not as written: {names}")


@checkpoints.command("url", epilog="segan checkpoints url s3://bucket/runs/first --expires 3600")
def url(
    source: Source,
    file: Annotated[str, typer.Option(help="A file of the checkpoint.")] = "segmentor.safetensors",
    expires: Annotated[int, typer.Option(help="Seconds that the link holds, up to 7 days.")] = 3600,
    which: Which = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a link by which anyone can download a file, without keys, until it expires."""
    from segan import s3, storage
    from segan.runs import MANIFEST, find_checkpoint
    from segan.terminal import say

    checkpoint = find_checkpoint(source, which)
    if file not in (*checkpoint.files, MANIFEST):
        known = ", ".join([*checkpoint.files, MANIFEST])
        raise UsageError(f"{checkpoint.uri}: no file {file!r}; expected one of {known}")
    link = s3.presign(storage.join(checkpoint.uri, file), expires)
    sha256 = checkpoint.files.get(file, {}).get("sha256")
    if as_json:
        answer({"url": link, "checkpoint": checkpoint.uri, "file": file} | {"sha256": sha256})
        return
    say(f"{checkpoint.uri}/{file} for {expires} s" + (f", sha256 {sha256}" if sha256 else ""))
    print(link)


def _show_study(uri: str, as_json: bool) -> None:
    from segan.search import Study
    from segan.terminal import say, show_study

    rows = Study(uri).rows()
    if as_json:
        answer({"study": uri, "trials": rows})
    elif rows:
        show_study(uri, rows)
        say(f"a study; a trial of it is a run: segan runs show {uri}/trials/{rows[0]['trial']}")
    else:
        say(f"{uri}: a study that has no trial yet")
