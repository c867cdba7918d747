"""The command that writes a report."""

from __future__ import annotations

from typing import Annotated

import typer

from segan.commands.options import Debug, Json

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
    from segan.evaluation.report.write import page_of, write_report
    from segan.terminal import answer, say

    found = write_report(uri, out, records, say)
    if as_json:
        answer(found.model_dump(mode="json"))
    say(f"report: {page_of(found.uri, out)}")
