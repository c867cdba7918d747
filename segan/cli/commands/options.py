"""What several commands share: their options, the configuration, joining a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from segan.config import Config

Local = Annotated[bool, typer.Option("--local", help="In this process, without a Ray cluster.")]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks, and Ray's own output.")]
Threshold = Annotated[
    float | None, typer.Option(min=0, max=1, help="Instead of the one best on validation.")
]
Tta = Annotated[
    bool | None,
    typer.Option("--flips/--no-flips", help="Mean over mirror images; as the run says else."),
]
OverrideArgs = Annotated[list[str] | None, typer.Argument(help="section.key=value")]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file; the paper's values else.")]


def load_cli_config(config: Path | None, overrides: list[str] | None) -> Config:
    """The configuration, its records by a URI that holds in any process's folder."""
    from segan import storage
    from segan.config import load_config

    settings = load_config(config, overrides or [])
    if not settings.data.records:
        return settings
    return settings.with_overrides({"data.records": storage.normalise(settings.data.records)})


def join_cluster(debug: bool) -> None:
    from ray_jobs.cluster.connect import connect
    from segan.cli.console import redirect_stdout_to_stderr, spinner

    address = os.environ.get("RAY_ADDRESS")
    redirect_stdout_to_stderr()
    with spinner(
        f"joining the Ray cluster {address}" if address else "starting Ray on this machine"
    ):
        connect(debug)


def advance_and_return(row: dict[str, Any], advance: Callable[[int], None]) -> dict[str, Any]:
    advance(1)
    return row
