"""The command that writes a report."""

from __future__ import annotations

from typing import Annotated

import typer

from segan.cli.commands.options import OUT, Debug, Json, RecordsOption
from segan.errors import UsageError

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
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Instead serve a page of the progress on this machine, until Ctrl-C.",
        ),
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --live; 0 for any.")] = 8001,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write an HTML report: curves, scores with intervals, example cases, how to reproduce it.

    Evaluates the model on the validation images, in this process. With --live it evaluates and
    writes nothing: it shows a run or a study while it is trained, from what is in storage, and the
    page reloads itself.
    """
    if live:
        if out or records:
            raise UsageError("--live: it writes no report; leave --out and --records away")
        _serve_live(uri, port, as_json)
        return
    from segan.cli.console import echo, print_json
    from segan.report.write import page_uri, write_report

    result = write_report(uri, out, records, echo)
    if as_json:
        print_json(result.model_dump(mode="json"))
    echo(f"report: {page_uri(result.uri, out)}")


def _serve_live(uri: str, port: int, as_json: bool) -> None:
    import contextlib

    from segan.cli.console import echo, print_json
    from segan.report.live import LiveServer
    from segan.report.progress import ProgressReader

    with LiveServer(ProgressReader(uri), port) as server:
        if as_json:
            print_json({"url": server.url})
        echo(f"{server.url}  (stop with Ctrl-C)")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
