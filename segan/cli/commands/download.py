"""The command that downloads the challenges' data sets."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated

import typer

from segan.cli.commands.options import FOLDER, OUT, Debug, Json

app = typer.Typer()


@app.command(epilog="segan download isic2017 --out s3://bucket/isic2017")
def download(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="isic2016, isic2017 or isic2018.")],
    out: Annotated[str, typer.Option(metavar=OUT, help=f"{FOLDER} for the files.")],
    mirror: Annotated[
        str | None,
        typer.Option(help="Download from this https://, http:// or s3:// address instead."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Download the challenge's zip files, which stay zipped.

    Repeat the command to resume a download that was stopped.
    """
    from segan import storage
    from segan.cli.console import echo, print_json, print_table, progress_bar
    from segan.data.download.isic import fetch_files, get_dataset
    from segan.data.download.remote import check_base

    dataset = get_dataset(name)
    source, place = check_base(mirror or dataset.base_url), storage.normalise(out)
    storage.check_access(place)
    storage.check_access(source)
    byte_progress = functools.partial(progress_bar, in_bytes=True)
    files = list(fetch_files(dataset.files, source, place, byte_progress, echo))
    if as_json:
        print_json([dataclasses.asdict(file) for file in files])
    else:
        rows = [[file.file, file.bytes] for file in files]
        print_table(f"{name} at {place}", ["file", "bytes"], rows)
