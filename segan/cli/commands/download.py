"""The command that downloads the challenges' data sets."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated

import typer

from segan.cli.commands.options import Debug, Json, OutOption

app = typer.Typer()


@app.command(epilog="segan download isic2017 --out s3://bucket/isic2017")
def download(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="isic2016, isic2017 or isic2018.")],
    out: OutOption,
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
    from segan.cli.console import print_json, print_table, progress_bar
    from segan.data.download.isic import download_files, get_dataset
    from segan.data.download.remote import check_base
    from segan.storage.lease import hold_lease

    dataset = get_dataset(name)
    base_url, out = check_base(mirror or dataset.base_url), storage.normalise(out)
    storage.check_access(base_url)
    progress = functools.partial(progress_bar, in_bytes=True)
    with hold_lease(out):
        results = list(download_files(dataset.files, base_url, out, progress))
    if as_json:
        print_json([dataclasses.asdict(result) for result in results])
    else:
        rows = [[result.file, result.bytes] for result in results]
        print_table(f"{name} in {out}", ["file", "bytes"], rows)
