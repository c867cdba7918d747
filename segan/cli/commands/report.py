"""The command that writes a report."""

from __future__ import annotations

from typing import Annotated

import typer

from segan.cli.commands.options import Debug, Json

app = typer.Typer()


@app.command(epilog="segan report s3://bucket/runs/first")
def report(
    uri: Annotated[str, typer.Argument(help="URI of a run, a study or an ensemble.")],
    out: Annotated[str, typer.Option(help="The page's place; URI/report.html else.")] = "",
    records: Annotated[str, typer.Option(help="URI of the records; the run's own else.")] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a page on a model: curves, scores with intervals, cases, how to do it again.

    Runs it over the validation frames, in this process.
    """
    from segan.cli.console import echo, print_json
    from segan.report.write import page_uri, write_report

    found = write_report(uri, out, records, echo)
    if as_json:
        print_json(found.model_dump(mode="json"))
    echo(f"report: {page_uri(found.uri, out)}")
