"""The command that brings the challenge's official files."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated

import typer

from segan.cli.commands.options import Debug, Json

app = typer.Typer()


@app.command(epilog="segan download isic2017 --out s3://bucket/isic2017")
def download(
    name: Annotated[str, typer.Argument(help="isic2016, isic2017 or isic2018.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// prefix for the files.")],
    mirror: Annotated[
        str | None, typer.Option(help="A mirror instead: https://, http:// or s3://.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Bring the challenge's own zips, which stay zips; stopped, it goes on when given again."""
    from segan import storage
    from segan.cli.console import echo, print_json, print_table, progress_bar
    from segan.data.download.isic import fetch_files, get_dataset
    from segan.data.download.remote import check_base

    wanted = get_dataset(name)
    source, place = check_base(mirror or wanted.base_url), storage.normalise(out)
    storage.check_access(place)
    storage.check_access(source)
    by_bytes = functools.partial(progress_bar, in_bytes=True)
    fetched = list(fetch_files(wanted.files, source, place, by_bytes, echo))
    if as_json:
        print_json([dataclasses.asdict(one) for one in fetched])
    else:
        print_table(
            f"{name} at {place}", ["file", "bytes"], [[one.file, one.bytes] for one in fetched]
        )
