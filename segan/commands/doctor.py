"""The command that says what is wrong with a machine, a cluster or a bucket."""

from __future__ import annotations

from typing import Annotated

import typer

from segan.commands.options import Debug, Json
from segan.errors import SeganError

app = typer.Typer()


@app.command(epilog="segan doctor --uri s3://bucket/runs")
def doctor(
    uri: Annotated[
        str | None, typer.Option("--uri", "--bucket", help="Folder or s3:// prefix to try out.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at this machine, the Ray cluster and a bucket: what is wrong, and what to do.

    Starts and joins nothing. Exit code 1 where a check fails.
    """
    from ray_jobs.doctor import cluster_checks
    from segan.doctor.checks import Check, Verdict, examine, skipped
    from segan.doctor.machine import machine_checks
    from segan.doctor.store import store_checks
    from segan.terminal import answer, divert, progress, table

    divert()
    nowhere = [Check("storage", lambda: skipped("not looked at", "say where: --uri s3://..."))]
    checks = [*machine_checks(), *cluster_checks(), *(store_checks(uri) if uri else nowhere)]
    found = []
    with progress("checking", len(checks)) as advance:
        for finding in examine(checks):
            found.append(finding)
            advance(1)
    if as_json:
        answer([finding.row() for finding in found])
    else:
        rows = [list(map(str, finding.row().values())) for finding in found]
        table(
            "this machine, the cluster, storage",
            ["check", "", "found", "what to do"],
            rows,
            (0, 1, 2, 3),
        )
    bad = [finding.check for finding in found if finding.outcome.verdict == Verdict.FAILS]
    if bad:
        raise SeganError(f"{len(bad)} of {len(found)} checks fail: {', '.join(bad)}")
