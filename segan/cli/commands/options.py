"""Options, arguments and start-up code that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from segan.config import Config

OUT = "OUT"  # metavar of every output
FOLDER = "A local folder or an s3:// prefix"


def complete_model(incomplete: str) -> list[str]:
    """The names of shipped models for a shell; without one it completes files."""
    from segan.runs.shipped import shipped_models

    return [name for name in shipped_models() if name.startswith(incomplete)]


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        autocompletion=complete_model,
        help="Name of a model that ships with segan, or URI of a run, a checkpoint or an ensemble.",
    ),
]
ArchiveArgument = Annotated[
    str,
    typer.Argument(metavar="ARCHIVE", help="Archive: a folder, an s3:// prefix, a zip or a CSV."),
]


def complete_classes(incomplete: str) -> list[str]:
    """The names of shipped descriptions of classes for a shell; without one it completes files."""
    from segan.data.archive.label_classes import shipped_classes

    return [name for name in shipped_classes() if name.startswith(incomplete)]


ClassesOption = Annotated[
    str,
    typer.Option(
        metavar="FILE|NAME",
        autocompletion=complete_classes,
        help="YAML file of several classes and their masks, or isic2018_attributes; default: the "
        "archive's classes.yaml, if it has one.",
    ),
]
OutArgument = Annotated[str, typer.Argument(metavar=OUT, help=f"{FOLDER} for the output.")]
OutOption = Annotated[str, typer.Option(metavar=OUT, help=f"{FOLDER} for the output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
RecordsOption = Annotated[
    str,
    typer.Option(metavar="URI", help="URI of the records; default: those that were trained on."),
]
StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help=f"{FOLDER} for the study.")]
OverrideArgs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.KEY=VALUE",
        help="Configuration overrides; `segan config` lists the keys.",
        show_default=False,
    ),
]


def complete_config(incomplete: str) -> list[str]:
    """The names of shipped configurations for a shell; without one it completes files."""
    from segan.config import shipped_configs

    return [name for name in shipped_configs() if name.startswith(incomplete)]


ConfigSource = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAME",
        autocompletion=complete_config,
        help="YAML file, or the name of a shipped configuration: paper, best, demo, ablation, "
        "ablation_best or ablation_small; default: the paper's values.",
    ),
]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and Ray's own output.")]
Threshold = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Decision threshold; default: the one with the best validation Jaccard."
    ),
]
Tta = Annotated[
    bool | None,
    typer.Option(
        "--tta/--no-tta",
        help="Average over flips (test-time augmentation); default: as in the run's config.",
    ),
]


def load_cli_config(config: str | None, overrides: list[str] | None) -> Config:
    """The configuration of a command, with absolute URIs of its records and initial weights."""
    from segan import storage
    from segan.config import load_config
    from segan.runs.shipped import locate_model

    settings, absolute = load_config(config, overrides or []), {}
    if settings.data.records:
        absolute["data.records"] = storage.normalise(settings.data.records)
    if settings.training.init:
        absolute["training.init"] = locate_model(settings.training.init)[0]
    return settings.with_overrides(absolute) if absolute else settings


def join_cluster(debug: bool) -> None:
    """Joins the Ray cluster of RAY_ADDRESS, or starts Ray on this machine."""
    from ray_jobs.cluster.connect import connect
    from segan.cli.console import redirect_stdout_to_stderr, spinner

    address = os.environ.get("RAY_ADDRESS")
    redirect_stdout_to_stderr()
    joining = f"joining the Ray cluster {address}, whose processes get this machine's segan"
    with spinner(joining if address else "starting Ray on this machine"):
        connect(debug)


def advance_and_return(row: dict[str, Any], advance: Callable[[int], None]) -> dict[str, Any]:
    advance(1)
    return row
