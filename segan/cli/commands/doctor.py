"""The command that checks a machine, a cluster and a bucket."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from segan.cli.commands.options import FOLDER, Debug, Json
from segan.errors import SeganError

if TYPE_CHECKING:
    from segan.doctor.checks import Check

app = typer.Typer()


@app.command(epilog="segan doctor --uri s3://bucket/runs")
def doctor(
    uri: Annotated[
        str | None, typer.Option(metavar="URI", help=f"{FOLDER} to test reading and writing.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check this machine, the Ray cluster and a bucket, and say how to fix what is wrong.

    Starts no Ray and joins no cluster. Exit code 1 if a check fails.
    """
    from segan.cli.console import print_json, print_table, progress_bar, redirect_stdout_to_stderr
    from segan.doctor.checks import Check, CheckStatus, run_checks, skipped
    from segan.doctor.machine import machine_checks
    from segan.doctor.storage import storage_checks

    redirect_stdout_to_stderr()
    no_storage_check = [
        Check("storage", lambda: skipped("not checked", "give a folder or bucket with --uri"))
    ]
    checks = [
        *machine_checks(),
        *_cluster_checks(),
        *(storage_checks(uri) if uri else no_storage_check),
    ]
    rows = []
    with progress_bar("checking", len(checks)) as advance:
        for name, outcome in run_checks(checks):
            rows.append({"check": name, **asdict(outcome)})
            advance(1)
    if as_json:
        print_json(rows)
    else:
        columns = ["check", "status", "message", "advice"]
        cells = [[str(value) for value in row.values()] for row in rows]
        print_table("this machine, the cluster, storage", columns, cells, (0, 1, 2, 3))
    failed = [row["check"] for row in rows if row["status"] == CheckStatus.FAILED]
    if failed:
        raise SeganError(f"{len(failed)} of {len(rows)} checks failed: {', '.join(failed)}")


def _cluster_checks() -> list[Check]:
    """The checks of the cluster; one that says why there is none where Ray is not installed."""
    if find_spec("ray"):
        from ray_jobs.cluster.doctor import cluster_checks

        return cluster_checks()
    from segan.doctor.checks import Check, skipped

    return [Check("cluster", lambda: skipped("not checked: Ray is not installed"))]
