"""The command that writes a report."""

from __future__ import annotations

from typing import Annotated

import typer

from segan.cli.commands.options import OUT, Debug, Json, RecordsOption

app = typer.Typer()


@app.command(epilog="segan report s3://bucket/runs/first")
def report(
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="URI of a run, a study or an ensemble.")
    ],
    out: Annotated[
        str, typer.Option(metavar=OUT, help="File for the page; default: URI/report.html.")
    ] = "",
    records: RecordsOption = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write an HTML report: curves, scores with intervals, example cases, how to reproduce it.

    Evaluates the model on the validation images, in this process.
    """
    from segan.cli.console import echo, print_json
    from segan.report.write import page_uri, write_report

    result = write_report(uri, out, records, echo)
    if as_json:
        print_json(result.model_dump(mode="json"))
    echo(f"report: {page_uri(result.uri, out)}")
