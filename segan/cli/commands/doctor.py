"""The command that says what is wrong with a machine, a cluster or a bucket."""

from __future__ import annotations

from typing import Annotated

import typer

from segan.cli.commands.options import Debug, Json
from segan.errors import SeganError

app = typer.Typer()


@app.command(epilog="segan doctor --uri s3://bucket/runs")
def doctor(
    uri: Annotated[str | None, typer.Option(help="Folder or s3:// prefix to try out.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at this machine, the Ray cluster and a bucket: what is wrong, and what to do.

    Starts and joins nothing. Exit code 1 where a check fails.
    """
    from ray_jobs.cluster.doctor import cluster_checks
    from segan.cli.console import print_json, print_table, progress_bar, redirect_stdout_to_stderr
    from segan.doctor.checks import Check, CheckStatus, run_checks, skipped
    from segan.doctor.machine import machine_checks
    from segan.doctor.storage import storage_checks

    redirect_stdout_to_stderr()
    no_storage_check = [
        Check("storage", lambda: skipped("not looked at", "say where: --uri s3://..."))
    ]
    checks = [
        *machine_checks(),
        *cluster_checks(),
        *(storage_checks(uri) if uri else no_storage_check),
    ]
    found = []
    with progress_bar("checking", len(checks)) as advance:
        for finding in run_checks(checks):
            found.append(finding)
            advance(1)
    if as_json:
        print_json([finding.to_dict() for finding in found])
    else:
        rows = [list(map(str, finding.to_dict().values())) for finding in found]
        print_table(
            "this machine, the cluster, storage",
            ["check", "", "found", "what to do"],
            rows,
            (0, 1, 2, 3),
        )
    failed = [finding.check for finding in found if finding.outcome.status == CheckStatus.FAILED]
    if failed:
        raise SeganError(f"{len(failed)} of {len(found)} checks fail: {', '.join(failed)}")
