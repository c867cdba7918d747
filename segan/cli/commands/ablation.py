"""The command that tries claims: variants beside each other, with intervals."""

from __future__ import annotations

import dataclasses
import signal
from typing import Annotated, Any

import typer

from segan.cli.commands.options import (
    ConfigFile,
    Debug,
    Json,
    Local,
    OverrideArgs,
    join_cluster,
    load_cli_config,
)
from segan.errors import SeganError

app = typer.Typer()


@app.command(epilog="segan ablate s3://b/studies/claims --config ray_jobs/configs/ablation.yaml")
def ablate(
    study: Annotated[str, typer.Argument(help="Folder or s3:// prefix of the study.")],
    overrides: OverrideArgs = None,
    config: ConfigFile = None,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train every variant with every seed and set them beside the baseline.

    A study that was stopped goes on; with more seeds or variants, what is missing is trained.
    """
    from segan.cli.console import echo, print_json
    from segan.cli.tables import show_ablation
    from segan.data.records.format import read_manifest
    from segan.evaluation.compare import compare_variants
    from segan.runs.ablation import prepare_trials, trial_overrides
    from segan.runs.study import Study
    from segan.storage.lease import hold_lease
    from segan.training.launch import train_all_local
    from segan.utils.signals import graceful_shutdown

    settings, place = load_cli_config(config, overrides), Study(study)
    overrides_by_trial = trial_overrides(
        settings
    )  # a variant that is none is said before anything else

    def on_validation(trial: str, metrics: dict[str, Any], should_continue: bool) -> None:
        echo(f"{trial}  epoch {metrics['epoch']}  Jaccard {metrics['jaccard']:.3f}")

    with hold_lease(place.uri):
        if local:
            trials = prepare_trials(
                settings, place, read_manifest(settings.data.records).fingerprint
            )
            with graceful_shutdown(signal.SIGINT, signal.SIGTERM) as stop_request:
                train_all_local(settings, trials, on_validation, stop_request)
        else:
            from ray_jobs.tuning.ablation import run_ablation as ablate_on_ray

            join_cluster(debug)
            ablate_on_ray(settings, place, on_validation)
        report = compare_variants(settings, place, echo)
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        show_ablation(report)
    failed = [run for run in report.runs if run.reason.startswith(("failed", "not over"))]
    if failed:
        raise SeganError(
            f"{place.uri}: {len(failed)} of {len(overrides_by_trial)} runs are not done, as "
            f"{failed[0].trial} ({failed[0].reason}); the same command tries them again"
        )
