"""The command that brings the challenge's official files."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated

import typer

from segan.commands.options import Debug, Json

app = typer.Typer()


@app.command(epilog="segan fetch isic2017 --dest s3://bucket/isic2017")
def fetch(
    name: Annotated[str, typer.Argument(help="isic2016, isic2017 or isic2018.")],
    dest: Annotated[str, typer.Option(help="Folder or s3:// prefix for the files.")],
    base: Annotated[
        str | None, typer.Option(help="A mirror instead: https://, http:// or s3://.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Bring the challenge's own zips, which stay zips; stopped, it goes on when given again."""
    from segan import storage
    from segan.data.fetch import data_set, fetch_files
    from segan.data.remote import check_base
    from segan.terminal import answer, progress, say, table

    wanted = data_set(name)
    source, place = check_base(base or wanted.base), storage.normalise(dest)
    storage.check_access(place)
    storage.check_access(source)
    by_bytes = functools.partial(progress, in_bytes=True)
    fetched = list(fetch_files(wanted.files, source, place, by_bytes, say))
    if as_json:
        answer([dataclasses.asdict(one) for one in fetched])
    else:
        table(f"{name} at {place}", ["file", "bytes"], [[one.file, one.bytes] for one in fetched])
